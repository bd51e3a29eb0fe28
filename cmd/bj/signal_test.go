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
