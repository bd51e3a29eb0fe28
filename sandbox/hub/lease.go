package hub

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

	"bj/sandbox"
)

// LeasePrefix begins the name of everything that an environment owns.
const LeasePrefix = "bj-"

// Lease is the record of one environment: a file that is locked for as long as
// somebody of it lives, bj or its gateway. The kernel ends a lock with its last
// holder, so a lease whose lock can be had has no living owner, whatever ended
// it, and nothing is decided by process ids or clocks.
type Lease struct {
	Name string   // what everything that the environment owns carries
	File *os.File // holds the lock: the gateway inherits it
	path string
}

// Record is what the file says, for people and for reaping.
type Record struct {
	Owner   string    `json:"owner"` // recipe
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Cgroups []string  `json:"cgroups,omitempty"` // folders to remove
}

// NewLease makes a locked lease in dir. Its error is a *sandbox.Error, which says
// what mends it.
func NewLease(dir string, rec Record, cgroups func(name string) []string) (*Lease, Record, error) {
	l, rec, err := newLease(dir, rec, cgroups)
	if err == nil {
		return l, rec, nil
	}
	hint := "the folder of leases must be writable: " + dir
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		hint = "the disk of leases is full: df -h " + dir
	}
	return nil, rec, &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: hint}
}

func newLease(dir string, rec Record, cgroups func(name string) []string) (*Lease, Record, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, rec, fmt.Errorf("making the folder of leases: %w", err)
	}
	var id [4]byte
	rand.Read(id[:])
	name := LeasePrefix + hex.EncodeToString(id[:])
	if cgroups != nil {
		rec.Cgroups = cgroups(name)
	}
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
	return &Lease{Name: name, File: f, path: path}, rec, nil
}

// End removes the lease. What it owned must be gone by then.
func (l *Lease) End() error {
	err := os.Remove(l.path)
	l.File.Close()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// draftAge is how old a lease without a name must be before it counts as
// abandoned: it is locked within microseconds of its creation.
const draftAge = time.Minute

// Reap ends the leases in dir that have no living owner, and returns their
// names. Remove removes what such a lease has left; nobody else has it then.
func Reap(ctx context.Context, dir string, remove func(ctx context.Context, name string, rec Record) error) ([]string, error) {
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
		if !strings.HasPrefix(name, LeasePrefix) {
			continue
		}
		if name != e.Name() {
			if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < draftAge {
				continue
			}
		}
		ok, err := reapOne(ctx, name, filepath.Join(dir, e.Name()), remove)
		if err != nil {
			errs = append(errs, fmt.Errorf("reaping %s: %w", name, err))
		}
		if ok {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(errs...)
}

func reapOne(ctx context.Context, name, path string, remove func(context.Context, string, Record) error) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, nil // its owner has just released it
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false, nil // it lives
	}
	var rec Record
	if err := json.NewDecoder(f).Decode(&rec); err == nil {
		if err := remove(ctx, name, rec); err != nil {
			return false, err
		}
	}
	return true, os.Remove(path)
}
