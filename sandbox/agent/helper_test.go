package agent

import (
	"bytes"
	"fmt"
	"net"
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
	"listen":  listen,
	"sniff":   sniff,
	"reach":   reach,
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

// listen accepts connections to port 4711 and to an abstract Unix socket.
func listen() {
	if _, err := net.Listen("tcp", "127.0.0.1:4711"); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := net.Listen("unix", "@agent-test"); err != nil {
		fmt.Println(err)
		return
	}
	time.Sleep(time.Hour)
}

// sniff prints two frames that leave through the sink, without the sender's
// hardware address.
func sniff() {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	ifi, err := net.InterfaceByName("sink")
	if err != nil {
		fmt.Println(err)
		return
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	b := make([]byte, 2048)
	for seen := 0; seen < 2; {
		n, err := unix.Read(fd, b)
		if err != nil {
			fmt.Println(err)
			return
		}
		f := bytes.ReplaceAll(b[:n], ifi.HardwareAddr, nil)
		if n < 14 || f[0] != 0xff { // the kernel's own, to groups
			continue
		}
		fmt.Printf("%x %x %x\n", f[:6], f[6:8], f[8:])
		seen++
	}
}
