package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marks is the tracker for agents without a cgroup folder: an ordinary user's.
//
// Each group has a cgroup namespace of its own. What that namespace shows does
// not matter; it serves as a mark that every descendant inherits through fork,
// exec, setsid and setuid, that costs some ten microseconds, and that
// /proc/PID/ns/cgroup shows. Only a process that asks for another cgroup
// namespace, such as a container runtime, leaves its group; it still dies with
// the machine.
type marks struct {
	proc *os.File // open, for root of the machine may mount over it

	mu   sync.Mutex
	held map[uint32]mark
	next int // how many ended groups are worth a look at every process
}

// A mark is a cgroup namespace. It is held open as long as the group is known,
// so that its number is not given to another.
type mark struct {
	fd    int
	inode uint64
	group group
}

// sweepAt is where next begins.
const sweepAt = 16

func newMarks() (*marks, error) {
	f, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("opening the list of processes: %w", err)
	}
	return &marks{proc: f, held: map[uint32]mark{}, next: sweepAt}, nil
}

func (t *marks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, m := range t.held {
		unix.Close(m.fd)
		delete(t.held, name)
	}
	t.proc.Close()
}

// prepare moves this thread into a new namespace rather than asking for one on
// fork, so that the mark is known before anything carries it.
func (t *marks) prepare(gr group, _ *syscall.SysProcAttr) (func(), error) {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("making a cgroup namespace as a mark: %w", err)
	}
	fd, err := unix.Openat(int(t.proc.Fd()), "thread-self/ns/cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the mark: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("reading the mark: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held[gr.name] = mark{fd: fd, inode: st.Ino, group: gr}
	return func() {}, nil
}

// kill kills what it sees until it has twice seen nothing: a process may fork
// while the list is read, but not once SIGKILL is pending, and its child is on
// the next list. Twice, because a child may get a lower number than where the
// reading is. Low numbers first, which are the parents: a shell that saw its
// child killed would end by itself, with 137, before its own turn came.
func (t *marks) kill(groups []group, deadline time.Time) (int, error) {
	wanted := t.inodes(groups)
	if len(wanted) == 0 {
		return 0, nil
	}
	seen := map[int]bool{}
	for try, empty := 0, 0; empty < 2; try++ {
		members, err := t.members(func(inode uint64) bool { return wanted[inode] })
		if err != nil {
			return len(seen), err
		}
		for _, pid := range slices.Sorted(maps.Keys(members)) {
			if err := t.killOne(pid, wanted); err != nil {
				return len(seen), fmt.Errorf("killing process %d: %w", pid, err)
			}
			seen[pid] = true
		}
		if len(members) == 0 {
			empty++
			continue
		}
		empty = 0
		if time.Now().After(deadline) {
			return len(seen), errAlive
		}
		pause(try)
	}
	return len(seen), nil
}

// killOne kills pid if it still is what it was. The descriptor is opened
// before the second look: if the number was given away in between, one of the
// two fails.
func (t *marks) killOne(pid int, wanted map[uint64]bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		// EINVAL: only a thread whose leader has ended is left, which a signal
		// to the number reaches all the same.
		if inode, ok := t.markOf(pid); ok && wanted[inode] {
			err = unix.Kill(pid, unix.SIGKILL)
		}
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			err = nil
		}
		return err
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if inode, ok := t.markOf(pid); !ok || !wanted[inode] {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (t *marks) sweep(groups []group) []group {
	t.mu.Lock()
	early := len(groups) < t.next
	t.mu.Unlock()
	if early {
		return nil
	}
	wanted := t.inodes(groups)
	alive := map[uint64]bool{}
	for range 2 { // for the same reason as in kill
		members, err := t.members(func(inode uint64) bool { return wanted[inode] })
		if err != nil {
			return nil
		}
		for _, inode := range members {
			alive[inode] = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var gone []group
	for _, gr := range groups {
		m, ok := t.held[gr.name]
		if ok && alive[m.inode] {
			continue
		}
		if ok {
			unix.Close(m.fd)
			delete(t.held, gr.name)
		}
		gone = append(gone, gr)
	}
	t.next = max(sweepAt, 2*(len(groups)-len(gone)))
	return gone
}

func (t *marks) inodes(groups []group) map[uint64]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := map[uint64]bool{}
	for _, gr := range groups {
		if m, ok := t.held[gr.name]; ok {
			found[m.inode] = true
		}
	}
	return found
}

// members returns the living processes whose mark is wanted.
func (t *marks) members(wanted func(uint64) bool) (map[int]uint64, error) {
	list, err := openat(t.proc, ".", unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer list.Close()
	names, err := list.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	self := os.Getpid()
	found := map[int]uint64{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == self {
			continue
		}
		if inode, ok := t.markOf(pid); ok && wanted(inode) {
			found[pid] = inode
		}
	}
	return found, nil
}

func (t *marks) groupOf(pid int) (group, bool) {
	inode, ok := t.markOf(pid)
	if !ok {
		return group{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.held {
		if m.inode == inode {
			return m.group, true
		}
	}
	return group{}, false
}

// markOf returns the mark of a process that has not ended.
func (t *marks) markOf(pid int) (uint64, bool) {
	name := strconv.Itoa(pid)
	var st unix.Stat_t
	if err := unix.Fstatat(int(t.proc.Fd()), name+"/ns/cgroup", &st, 0); err == nil {
		return st.Ino, true
	}
	// A leader that has ended while its threads go on has no namespaces, but
	// they have.
	tasks, err := openat(t.proc, name+"/task", unix.O_DIRECTORY)
	if err != nil {
		return 0, false
	}
	defer tasks.Close()
	tids, _ := tasks.Readdirnames(-1)
	for _, tid := range tids {
		if tid != name && unix.Fstatat(int(t.proc.Fd()), name+"/task/"+tid+"/ns/cgroup", &st, 0) == nil {
			return st.Ino, true
		}
	}
	return 0, false
}

// others: there is no init system where there are no cgroups.
func (t *marks) others(string) []group { return nil }
