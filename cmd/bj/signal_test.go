package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bj/run/event"
)

// sleepy is a workspace with a recipe that would take a minute.
const sleepy = `
service(name = "sleepy", owner = "x")
recipe(
    name = "sleepy",
    service = "sleepy",
    hardware = [hardware("bed")],
    strategy = [step("Sleep", run = "sleep 60")],
    validation = [validate("awake", run = "true", invariant = True)],
)
`

// startSleepy starts bj test in a workspace of its own.
func startSleepy(t *testing.T) (cmd *exec.Cmd, stdout io.ReadCloser, stderr *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"bj.star": "", "a/a.star": sleepy} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stderr = new(bytes.Buffer)
	cmd = exec.CommandContext(t.Context(), self)
	cmd.Args = []string{"bj", "test", "//...", "--json", "--results", filepath.Join(dir, "results")}
	cmd.Dir = dir
	cmd.Stderr = stderr
	cmd.WaitDelay = 10 * time.Second
	stdout, err = cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return cmd, stdout, stderr
}

// wait returns the exit code of cmd, which must end before its step would.
func wait(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

// A signal tears environments down, says so in the stream, and exits with 130.
func TestInterrupt(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, stdout, stderr := startSleepy(t)
			events := event.NewDecoder(stdout)
			var last, verdict event.Event
			sent := false
			for {
				e, err := events.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, stderr)
				}
				last = e
				switch e.Event {
				case event.StepStarted:
					sent = true
					if err := cmd.Process.Signal(sig); err != nil {
						t.Fatal(err)
					}
				case event.VerdictGiven:
					verdict = e
				}
			}
			if code := wait(t, cmd); code != exitInterrupted || !sent {
				t.Errorf("exit code %d after a signal (sent: %v), want %d\n%s", code, sent, exitInterrupted, stderr)
			}
			if last.Event != event.End || last.Exit == nil || *last.Exit != exitInterrupted {
				t.Errorf("the stream ends with %+v", last)
			}
			if v := verdict.Verdict; v == nil || v.Verdict != event.Errored || v.Code == nil || *v.Code != "interrupted" {
				t.Errorf("the verdict is %+v", verdict.Verdict)
			}
			if !strings.Contains(stderr.String(), "bj: interrupted: tearing down") {
				t.Errorf("stderr does not say what happens:\n%s", stderr)
			}
		})
	}
}

// A second signal stops waiting, and says so: what ran ends with bj, and the next
// bj removes what is left of it.
func TestInterruptTwice(t *testing.T) {
	cmd, stdout, stderr := startSleepy(t)
	lease := ""
	for events := event.NewDecoder(stdout); ; {
		e, err := events.Next()
		if err != nil { // the stream is cut off
			break
		}
		switch e.Event {
		case event.Lease:
			lease = e.Text
		case event.StepStarted:
			for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if code := wait(t, cmd); code != exitInterrupted || lease == "" {
		t.Fatalf("exit code %d after two signals, lease %q\n%s", code, lease, stderr)
	}
	if !strings.Contains(stderr.String(), "bj: interrupted again: not waiting; ") {
		t.Errorf("stderr does not say what happens:\n%s", stderr)
	}
	members := func() (found string) {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			dirs, _ := filepath.Glob(pattern + lease)
			for _, dir := range dirs {
				filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
					if err == nil && d.Name() == "cgroup.procs" {
						data, _ := os.ReadFile(path)
						found += string(data)
					}
					return nil
				})
			}
		}
		return found
	}
	for deadline := time.Now().Add(15 * time.Second); members() != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has outlived bj: processes %q", lease, members())
		}
	}
	next, stdout, stderr := startSleepy(t)
	for events := event.NewDecoder(stdout); ; {
		e, err := events.Next()
		if err != nil {
			break
		}
		if e.Event == event.Lease {
			next.Process.Signal(os.Interrupt)
		}
	}
	if code := wait(t, next); code != exitInterrupted || !strings.Contains(stderr.String(), lease) {
		t.Errorf("exit code %d, and the next bj does not say that it removed %s:\n%s", code, lease, stderr)
	}
}

// A reader that goes away ends the run: environments are torn down, and it is
// an error of writing, not a death by signal.
func TestReaderGone(t *testing.T) {
	cmd, stdout, stderr := startSleepy(t)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.Contains(line, `"start"`) {
		t.Fatalf("%q, %v\n%s", line, err, stderr)
	}
	stdout.Close()
	if code := wait(t, cmd); code != exitError {
		t.Errorf("exit code %d, want %d\n%s", code, exitError, stderr)
	}
	if !strings.Contains(stderr.String(), "bj: error: writing results: the reader of stdout has gone away") {
		t.Errorf("stderr:\n%s", stderr)
	}
}

// A panic is an error in words, without a trace unless somebody asks for it.
func TestPanic(t *testing.T) {
	for _, debug := range []string{"", "1"} {
		var out bytes.Buffer
		e := newEnv()
		e.stderr = &out
		e.getenv = variablesOf("BJ_DEBUG", debug)
		err := e.guard(func() error { panic("boom") })
		if code := e.report(err); code != exitError {
			t.Errorf("exit code %d, want %d", code, exitError)
		}
		if !strings.Contains(out.String(), "bj: error: bj itself is at fault: boom\nbj: hint: ") {
			t.Errorf("stderr:\n%s", &out)
		}
		if strings.Contains(out.String(), "goroutine ") != (debug != "") {
			t.Errorf("with BJ_DEBUG=%q, stderr:\n%s", debug, &out)
		}
	}
}
