package ns

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// who says which process of the machine is at the other end of a connection: nil
// if that is not known. It is the one that has connected, whoever has the socket
// by now.
func (d *door) who(c *net.UnixConn) *sandbox.Origin {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	pid, handle := 0, -1
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
		// Since Linux 6.5. Without it a number could have been given to another
		// process meanwhile: the host's numbers, on which no machine has a say.
		if h, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			handle = h
		}
	})
	if handle >= 0 {
		defer unix.Close(handle)
	}
	if pid == 0 {
		return nil
	}
	o := &sandbox.Origin{PID: numberInside(pid), Unit: d.unitOf(pid), Argv: arguments(pid)}
	o.Exe, _ = os.Readlink(procFile(pid, "exe"))
	for next := parent(pid); next > 1 && d.unitOf(next) == o.Unit && o.Unit != "" && len(o.Parents) < 16; next = parent(next) {
		o.Parents = append(o.Parents, fmt.Sprintf("%s (pid %d)", strings.Join(arguments(next), " "), numberInside(next)))
	}
	if handle >= 0 && unix.PidfdSendSignal(handle, 0, nil, 0) != nil {
		return nil // it has ended: what was read may be another's
	}
	return o
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// unitOf returns the unit of a process of the machine; "" if it is in none.
func (d *door) unitOf(pid int) string {
	b, err := os.ReadFile(procFile(pid, "cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if at, ok := strings.CutPrefix(line, "0::"+d.units+"/u-"); ok {
			if unit, _, ok := strings.Cut(at, "/"); ok {
				return unit
			}
		}
	}
	return ""
}

// numberInside returns the number that a process has in its machine.
func numberInside(pid int) int {
	n, _ := strconv.Atoi(lastField(status(pid, "NSpid:")))
	return n
}

func parent(pid int) int {
	n, _ := strconv.Atoi(lastField(status(pid, "PPid:")))
	return n
}

func lastField(s string) string {
	f := strings.Fields(s)
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1]
}

func status(pid int, key string) string {
	b, _ := os.ReadFile(procFile(pid, "status"))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			return v
		}
	}
	return ""
}

// arguments returns the command line of a process, cut where it is long.
func arguments(pid int) []string {
	const most = 4096
	b, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil || len(b) == 0 {
		return nil
	}
	b = b[:min(len(b), most)]
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	return args
}
