package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is a program of the host that makes something.
type command struct {
	Dir  string
	Env  []string // complete
	Argv []string
	// Mounts says that it mounts something. As root, its mounts are its own, and
	// end together with all that it has started, even if nobody is left to unmount.
	Mounts bool
}

// run runs c and returns its stdout. An error holds the end of what it wrote.
// If ctx ends, or this process dies, c dies with all that it has started.
func (c command) run(ctx context.Context) (string, error) {
	// The death signal is sent when the starting thread ends, so it must not.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	var stdout bytes.Buffer
	said := &tail{max: 16 << 10}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.Dir, c.Env, io.MultiWriter(&stdout, said), said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.Mounts && mayMount() {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // made private by os/exec
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.String(), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("running %s: %w", c.name(), ctx.Err())
	}
	if words := said.lines(20); words != "" {
		return "", fmt.Errorf("running %s: %w:\n%s", c.name(), err, words)
	}
	return "", fmt.Errorf("running %s: %w", c.name(), err)
}

// mayMount reports whether what is started could mount something outside of a
// namespace of its own, as root can but for one of most containers.
func mayMount() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	return unix.Capget(&header, &caps[0]) == nil && caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// name is the program and its subcommand.
func (c command) name() string {
	words := []string{filepath.Base(c.Argv[0])}
	for _, a := range c.Argv[1:] {
		if !strings.HasPrefix(a, "-") {
			return strings.Join(append(words, a), " ")
		}
	}
	return words[0]
}

// environ is the process's environment without the variables named, and with
// those of set and s.Env.
func (s *Store) environ(without []string, set ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return slices.Contains(without, k)
	})
	return slices.Concat(env, set, s.Env)
}

// lookPath finds a program with the PATH that commands will have.
func lookPath(env []string, name string) (string, error) {
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 && filepath.IsAbs(p) {
			return p, nil
		}
	}
	return "", errors.New("there is no " + name + " on PATH")
}

// tail keeps the last max bytes written to it, from two streams.
type tail struct {
	max int
	mu  sync.Mutex
	b   []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - t.max; over > 0 {
		t.b, t.cut = append(t.b[:0], t.b[over:]...), true
	}
	return len(p), nil
}

// lines returns the last n lines.
func (t *tail) lines(n int) string {
	ls := strings.Split(strings.TrimRight(strings.ToValidUTF8(string(t.b), "\uFFFD"), "\n"), "\n")
	if t.cut && len(ls) > 1 {
		ls = ls[1:] // half a line
	}
	if len(ls) > n {
		ls = ls[len(ls)-n:]
	}
	return strings.Join(ls, "\n")
}
