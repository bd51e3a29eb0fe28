package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// looked is a recipe to look into: its third step fails. A step that fails on
// one machine is ended on the others.
const looked = `"""To look into."""

m = hardware("m", count = 2)

service(name = "test", owner = "x")

recipe(
    name = "fails",
    service = "test",
    hardware = [m],
    tooling = [file("/usr/local/bin/hello", content = "#!/bin/sh\necho hello from $(hostname)\n", mode = "0755")],
    strategy = [
        step("First", run = "echo first > /root/trace"),
        step("Second", run = "echo second >> /root/trace"),
        step("Third", run = "exit 3"),
    ],
    validation = [validate("v", run = "test -e /root/never", within = "1s")],
)
`

// screen is a terminal that a test sits at.
type screen struct {
	master *os.File
	out    *locked
	slave  *os.File
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{master: master, slave: slave, out: &locked{}}
	s.size(t, 25, 90)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			s.out.Write(b[:n])
		}
	}()
	t.Cleanup(func() { slave.Close(); <-done; master.Close() })
	return s
}

func (s *screen) size(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(s.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// see waits until text is on the screen n times.
func (s *screen) see(t *testing.T, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); strings.Count(s.out.String(), text) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not there %d times:\n%s", text, n, s.out)
		}
	}
}

func (s *screen) keys(t *testing.T, text string) {
	t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// TestShell sits in a machine: with a terminal and without, in a fresh
// environment and in one that is kept.
func TestShell(t *testing.T) {
	l := newLab(t)
	dir := openDir(t)
	for name, text := range map[string]string{"bj.star": "", "looked.star": looked} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	home := l.folder(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	command := func(args ...string) *exec.Cmd {
		cmd := l.bj(ctx, t, true, home, args...)
		cmd.Dir = dir
		return cmd
	}
	script := func(text string, args ...string) (stdout, stderr string, code int) {
		t.Helper()
		cmd := command(append([]string{"shell"}, args...)...)
		cmd.Stdin = strings.NewReader(text)
		var out, errs locked
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := l.start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}

	t.Run("script", func(t *testing.T) {
		out, errs, code := script("hello; cat /root/trace; echo aside >&2; (echo x > /dev/tcp/192.0.2.10/7000) 2>/dev/null; exit 0\n", "//:fails", "--machine", "m-1", "--after", "Third")
		if code != exitOK || out != "hello from m-1\nfirst\nsecond\n" || !strings.Contains(errs, "aside") {
			t.Errorf("exit code %d\n%s\n%s", code, out, errs)
		}
		if !strings.Contains(errs, `step "Third" failed`) {
			t.Errorf("nothing is said of the step that failed:\n%s", errs)
		}
		if out, errs, code := script("test -e /root/trace || echo fresh; exit 7\n", "//:fails"); code != exitNotRecovered || out != "fresh\n" || !strings.Contains(errs, "exit code 7") {
			t.Errorf("exit code %d\n%s\n%s", code, out, errs)
		}
		for _, args := range [][]string{{"//:fails", "--machine", "m-2"}, {"//:fails", "--after", "Frist"}, {}} {
			if _, errs, code := script("", args...); code != exitUsage || !strings.Contains(errs, "bj: error") {
				t.Errorf("%q: exit code %d\n%s", args, code, errs)
			}
		}
	})

	t.Run("terminal", func(t *testing.T) {
		s := newScreen(t)
		cmd := command("shell", "//:fails", "--after", "First")
		cmd.Env = append(cmd.Env, "TERM=xterm")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.slave, s.slave, s.slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := l.start(cmd); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill() // which has ended, unless the test fails
		const prompt = "(sealed) m-0"
		s.see(t, prompt, 1)
		s.keys(t, "echo $TERM $(stty size) $(hello)\r")
		s.see(t, "xterm 25 90 hello from m-0", 1)
		s.size(t, 33, 77)
		s.keys(t, "sleep 0.2; stty size\r")
		s.see(t, "33 77", 1)
		s.keys(t, "sleep 1001\r")
		s.see(t, "sleep 1001", 1)
		s.keys(t, "\x03")
		s.see(t, prompt, 4)
		s.keys(t, "sleep 1002\r")
		s.see(t, "sleep 1002", 1)
		// Until the shell has given it the terminal, a key would be the shell's.
		time.Sleep(300 * time.Millisecond)
		s.keys(t, "\x1a")
		s.see(t, "Stopped", 1)
		s.keys(t, "disown -a; exit 9\r")
		defer time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() }).Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, s.out)
		}
		state, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
		if err != nil || state.Lflag&unix.ECHO == 0 {
			t.Errorf("the terminal was not given back: %v", err)
		}
	})

	t.Run("kept", func(t *testing.T) {
		cmd := command("test", "//:fails", "--keep", "--results", filepath.Join(home, "results"))
		var out, errs locked
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := l.start(cmd); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); !strings.Contains(errs.String(), "enters it"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing is kept:\n%s", errs.String())
			}
		}
		if !strings.Contains(out.String(), "look inside: bj shell //:fails\n") {
			t.Errorf("the failure does not say how to look inside:\n%s", out.String())
		}
		for range 2 { // visits leave what they find
			if out, errs, code := script("cat /root/trace\n", "//:fails", "--machine", "m-1"); code != exitOK || out != "first\nsecond\n" || !strings.Contains(errs, "kept") {
				t.Errorf("exit code %d\n%s\n%s", code, out, errs)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if out, _, code := script("ls /root\n", "//:fails"); code != exitOK || out != "" {
			t.Errorf("afterwards: exit code %d\n%s", code, out)
		}
	})
	l.checkLeftovers([]string{"bj-none"})
}
