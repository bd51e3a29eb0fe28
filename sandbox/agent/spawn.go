package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A spawner forks every command from one thread of its own, because the mark of
// a command, where there are no cgroups, is a property of the thread that forks
// it.
//
// It also reaps: nothing else in the process may wait for children. One lock
// covers forking, reaping and signalling, so that an exit is never seen before
// its command is known, and no signal reaches a pid that was given away.
type spawner struct {
	tracker tracker
	apart   bool // see Options
	work    chan func()
	done    sync.WaitGroup

	mu      sync.Mutex
	waiting map[int]chan<- unix.WaitStatus
}

func newSpawner(t tracker, apart bool) *spawner {
	s := &spawner{tracker: t, apart: apart, work: make(chan func()), waiting: map[int]chan<- unix.WaitStatus{}}
	s.done.Go(func() {
		// Never unlocked: the thread ends with the goroutine, as it must not be
		// used for anything else.
		runtime.LockOSThread()
		if _, ok := t.(*cgroups); ok {
			// So that commands see the machine's cgroup as the root. Where that is
			// refused they see the host's name of it, which tells them nothing.
			_ = unix.Unshare(unix.CLONE_NEWCGROUP)
		}
		for f := range s.work {
			f()
		}
	})
	return s
}

func (s *spawner) stop() {
	close(s.work)
	s.done.Wait()
}

// do runs f on the thread that forks.
func (s *spawner) do(f func()) {
	finished := make(chan struct{})
	s.work <- func() { defer close(finished); f() }
	<-finished
}

// An image is what becomes of a forked process.
type image struct {
	argv  []string
	env   []string
	dir   string
	files []uintptr
	cred  *syscall.Credential
	group group
	// terminal makes the first file the session's terminal.
	terminal bool
}

// start forks im. The wait status is sent to ended once, which must not block.
func (s *spawner) start(im image, ended chan<- unix.WaitStatus) (pid int, err error) {
	s.do(func() {
		attr := &syscall.ProcAttr{Dir: im.dir, Env: im.env, Files: im.files, Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Setctty:    im.terminal, // of descriptor 0
			Credential: im.cred,
		}}
		if s.apart {
			attr.Sys.Unshareflags = unix.CLONE_NEWCGROUP
		}
		forked, perr := s.tracker.prepare(im.group, attr.Sys)
		if perr != nil {
			err = perr
			return
		}
		defer forked()
		s.mu.Lock()
		defer s.mu.Unlock()
		if pid, err = syscall.ForkExec(im.argv[0], im.argv, attr); err != nil {
			err = fmt.Errorf("executing %s: %w", im.argv[0], err)
			return
		}
		s.waiting[pid] = ended
		// What the memory limit ends should be a command rather than the agent.
		os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("500"), 0)
	})
	return pid, err
}

// reap collects every child that has ended.
func (s *spawner) reap() {
	for {
		s.mu.Lock()
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == nil && pid > 0 {
			if c := s.waiting[pid]; c != nil {
				delete(s.waiting, pid)
				c <- ws
			}
		}
		s.mu.Unlock()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
