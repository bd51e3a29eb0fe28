package agent

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// helpers are programs that commands in the guest run: the test binary again.
var helpers = map[string]func(){
	"hop":     hop,
	"threads": threads,
	"calls":   calls,
	"compat":  compat,
	"attack":  attack,
}

// helper is the command that runs one of helpers.
func (m *machine) helper(t *testing.T, role string) sandbox.Command {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.Command{
		Argv: []string{exe, "AGENT-HELPER", role},
		Env:  map[string]string{roleVar: role},
		Unit: "helper",
	}
}

// hop forks itself and ends, for ever.
func hop() {
	_, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Println(err)
	}
}

// threads ends its first thread and lives on.
func threads() {
	runtime.LockOSThread()
	pid := os.Getpid()
	go func() {
		for {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, pid)); err != nil || bytes.Contains(b, []byte(") Z ")) {
				fmt.Println("alone")
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Hour)
	}()
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}
