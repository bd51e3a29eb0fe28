package ns

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// leasePrefix begins the name of everything that an environment owns.
const leasePrefix = "bj-"

// lease is the record of one environment: a file that is locked for as long as
// somebody of it lives, bj or its gateway. The kernel ends a lock with its last
// holder, so a lease whose lock can be had has no living owner, whatever ended
// it, and nothing is decided by process ids or clocks.
type lease struct {
	name string
	file *os.File
	path string
}

// leaseRecord is what the file says, for people and for reaping.
type leaseRecord struct {
	Owner   string    `json:"owner"` // recipe
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Cgroups []string  `json:"cgroups"` // folders to remove
}

// newLease makes a locked lease in dir.
func newLease(dir string, rec leaseRecord, cgroups func(name string) []string) (*lease, leaseRecord, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, rec, fmt.Errorf("making the folder of leases: %w", err)
	}
	var id [4]byte
	rand.Read(id[:])
	name := leasePrefix + hex.EncodeToString(id[:])
	rec.Cgroups = cgroups(name)
	// The file gets its name only once it is locked: a reaper never sees it free.
	draft := filepath.Join(dir, "."+name)
	f, err := os.OpenFile(draft, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, rec, fmt.Errorf("making a lease: %w", err)
	}
	undo := func() { f.Close(); os.Remove(draft) }
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		undo()
		return nil, rec, fmt.Errorf("locking a lease: %w", err)
	}
	if err := json.NewEncoder(f).Encode(rec); err != nil {
		undo()
		return nil, rec, fmt.Errorf("writing a lease: %w", err)
	}
	path := filepath.Join(dir, name)
	if err := os.Rename(draft, path); err != nil {
		undo()
		return nil, rec, fmt.Errorf("naming a lease: %w", err)
	}
	return &lease{name: name, file: f, path: path}, rec, nil
}

// end removes the lease. What it owned must be gone by then.
func (l *lease) end() error {
	err := os.Remove(l.path)
	l.file.Close()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// draftAge is how old a lease without a name must be before it counts as
// abandoned: it is locked within microseconds of its creation.
const draftAge = time.Minute

// reap removes what leases without a living owner have left, and returns their
// names.
func reap(ctx context.Context, dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	var removed []string
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		name := strings.TrimPrefix(e.Name(), ".")
		if !strings.HasPrefix(name, leasePrefix) {
			continue
		}
		if name != e.Name() {
			if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < draftAge {
				continue
			}
		}
		ok, err := reapOne(ctx, filepath.Join(dir, e.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("reaping %s: %w", name, err))
		}
		if ok {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(errs...)
}

func reapOne(ctx context.Context, path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, nil // its owner has just released it
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false, nil // it lives
	}
	var rec leaseRecord
	if err := json.NewDecoder(f).Decode(&rec); err == nil {
		if err := removeCgroups(ctx, rec.Cgroups); err != nil {
			return false, err
		}
	}
	return true, os.Remove(path)
}

// removeCgroups kills what is left in the folders and removes them, within two
// seconds. Folders that are not there are no error.
func removeCgroups(ctx context.Context, dirs []string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		var left error
		for _, dir := range dirs {
			if !strings.HasPrefix(filepath.Base(dir), leasePrefix) {
				return fmt.Errorf("removing %s: not a lease's", dir)
			}
			if err := removeCgroup(dir); err != nil {
				left = err
			}
		}
		if left == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return left
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func removeCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		if errors.Is(rerr, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("reading %s: %w", dir, rerr)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if pids, rerr := os.ReadFile(filepath.Join(dir, "cgroup.procs")); rerr == nil {
		for _, line := range strings.Fields(string(pids)) {
			var pid int
			// 0 is a process of another namespace, 1 never ours.
			if _, err := fmt.Sscan(line, &pid); err == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}
