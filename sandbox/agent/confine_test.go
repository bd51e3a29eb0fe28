package agent

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// report prints one line of the results that a test looks for.
func report(what string, err error) {
	if err == nil {
		fmt.Println(what, "ok")
	} else {
		fmt.Println(what, errnoName(err))
	}
}

// call makes a system call with arguments that would fail anyhow.
func call(what string, nr uintptr, args ...uintptr) {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 {
		report(what, nil)
	} else {
		report(what, errno)
	}
}

// calls tries every address family and the calls that are denied.
func calls() {
	for _, f := range []struct {
		name                  string
		family, typ, protocol int
	}{
		{"unix", unix.AF_UNIX, unix.SOCK_STREAM, 0},
		{"inet", unix.AF_INET, unix.SOCK_STREAM, 0},
		{"inet6", unix.AF_INET6, unix.SOCK_DGRAM, 0},
		{"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"netlink", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0},
		{"xdp", unix.AF_XDP, unix.SOCK_RAW, 0},
		{"vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"qipcrtr", unix.AF_QIPCRTR, unix.SOCK_DGRAM, 0},
		{"tipc", unix.AF_TIPC, unix.SOCK_DGRAM, 0},
	} {
		_, err := unix.Socket(f.family, f.typ, f.protocol)
		report(f.name, err)
	}
	// The upper half of the first argument is no way around.
	call("xdp+", unix.SYS_SOCKET, unix.AF_XDP|1<<32, unix.SOCK_RAW, 0)
	var params [256]byte
	call("io_uring_setup", unix.SYS_IO_URING_SETUP, 8, uintptr(unsafe.Pointer(&params)))
	call("io_uring_enter", unix.SYS_IO_URING_ENTER, ^uintptr(0))
	call("io_uring_register", unix.SYS_IO_URING_REGISTER, ^uintptr(0))
	call("add_key", unix.SYS_ADD_KEY)
	call("request_key", unix.SYS_REQUEST_KEY)
	call("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(2), 1) // KEYCTL_GET_KEYRING_ID of the session
	call("bpf", unix.SYS_BPF, ^uintptr(0))
	call("perf_event_open", unix.SYS_PERF_EVENT_OPEN)
	call("init_module", unix.SYS_INIT_MODULE)
	call("finit_module", unix.SYS_FINIT_MODULE, ^uintptr(0))
	call("delete_module", unix.SYS_DELETE_MODULE)
	call("kexec_load", unix.SYS_KEXEC_LOAD)
	call("kexec_file_load", unix.SYS_KEXEC_FILE_LOAD)
	call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0))
	call("syslog", unix.SYS_SYSLOG, 3, 0, 0)
	if x32Bit != 0 {
		call("x32", x32Bit|unix.SYS_GETPID)
	}
	call("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWNET)
	n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || n != 0 {
		fmt.Println("no_new_privs", n, err)
	}
}

func TestConfined(t *testing.T) {
	want := map[string]string{
		"unix": "ok", "inet": "ok", "inet6": "ok", "raw": "ok", "netlink": "ok", "packet": "ok",
		"xdp": "EAFNOSUPPORT", "xdp+": "EAFNOSUPPORT", "vsock": "EAFNOSUPPORT", "qipcrtr": "EAFNOSUPPORT", "tipc": "EAFNOSUPPORT",
		"io_uring_setup": "ENOSYS", "io_uring_enter": "ENOSYS", "io_uring_register": "ENOSYS",
		"add_key": "ENOSYS", "request_key": "ENOSYS", "keyctl": "ENOSYS",
		"bpf": "EPERM", "perf_event_open": "EPERM", "syslog": "EPERM",
		"init_module": "EPERM", "finit_module": "EPERM", "delete_module": "EPERM",
		"kexec_load": "EPERM", "kexec_file_load": "EPERM", "open_by_handle_at": "EPERM",
		"unshare": "ok",
	}
	if x32Bit != 0 {
		want["x32"] = "ENOSYS"
	}
	variants(t, func(t *testing.T, m *machine) {
		out, errs, e := m.run(t, m.helper(t, "calls"))
		if e.Code != 0 || errs != "" {
			t.Fatalf("%+v %s", e, errs)
		}
		got := map[string]string{}
		for line := range strings.Lines(out) {
			name, result, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[name] = result
		}
		for name, w := range want {
			if got[name] != w {
				t.Errorf("%s: %q, want %q", name, got[name], w)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("also %v", got)
		}
	})
}

// int80 makes a call of the 32-bit table from a 64-bit program: it exits with 7
// through the 32-bit number of exit_group if it may, else through the right one with
// the error that it got. An assembler would be needed to write it in Go.
var int80 = []byte{
	0xb8, 252, 0, 0, 0, // mov eax, 252 (exit_group)
	0xbb, 7, 0, 0, 0, // mov ebx, 7
	0xcd, 0x80, // int 0x80
	0xf7, 0xd8, // neg eax
	0x89, 0xc7, // mov edi, eax
	0xb8, 231, 0, 0, 0, // mov eax, 231 (exit_group)
	0x0f, 0x05, // syscall
}

// compat runs int80.
func compat() {
	m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	copy(m, int80)
	code := uintptr(unsafe.Pointer(&m[0]))
	ptr := &code // a func value points to the code's address
	(*(*func())(unsafe.Pointer(&ptr)))()
}

func TestCompat(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("one table of calls")
	}
	m := newMachine(t, false)
	_, errs, e := m.run(t, m.helper(t, "compat"))
	if strings.Contains(errs, "signal SIGSEGV") {
		t.Skip("this kernel has no calls for 32-bit programs: int 0x80 is a fault")
	}
	if e.Code != int(unix.ENOSYS) {
		t.Errorf("%+v, want the error ENOSYS", e)
	}
}

// attack tries, as root of the machine, to get hold of the agent.
func attack() {
	runtime.LockOSThread()
	for _, name := range []string{"mem", "environ", "maps", "fd/3", "root", "exe", "cwd"} {
		f, err := os.OpenFile("/proc/1/"+name, os.O_RDONLY, 0)
		if err == nil {
			_, err = f.Read(make([]byte, 1)) // mem can be opened without being read
		}
		report(name, err)
	}
	tasks, err := os.ReadDir("/proc/1/task")
	report("tasks", err)
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if err := unix.PtraceAttach(tid); err != unix.EPERM {
			report("ptrace "+task.Name(), err)
		}
		if err := unix.PtraceSeize(tid); err != unix.EPERM {
			report("seize "+task.Name(), err)
		}
	}
	var b [8]byte
	local := unix.Iovec{Base: &b[0], Len: 8}
	_, err = unix.ProcessVMReadv(1, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	report("vm", err)
	pidfd, err := unix.PidfdOpen(1, 0)
	report("pidfd", err)
	_, err = unix.PidfdGetfd(pidfd, 3, 0)
	report("getfd", err)
}

// Root of the machine cannot touch an agent that was executed from a file which
// it may not read.
func TestAttack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("as an ordinary user, the machine's root owns what the agent is executed from")
	}
	m := newMachineFrom(t, hidden)
	dir, err := os.MkdirTemp("/tmp", "bj-agent-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	c := m.helper(t, "attack")
	c.Argv[0] = dir + "/helper"
	if err := m.Put(testContext(t), sandbox.File{Path: c.Argv[0], Mode: 0o755, Content: exe}); err != nil {
		t.Fatal(err)
	}
	out, errs, e := m.run(t, c)
	want := "mem EACCES\nenviron EACCES\nmaps EACCES\nfd/3 EACCES\nroot EACCES\nexe EACCES\ncwd EACCES\ntasks ok\nvm EPERM\npidfd ok\ngetfd EPERM\n"
	if out != want || e.Code != 0 {
		t.Errorf("%+v\n%s%swant\n%s", e, out, errs, want)
	}
	m.script(t, "true")
}

// Signals do not end the agent, neither those of the machine's root, of which
// the kernel passes on what is caught, nor those of the host.
func TestSignals(t *testing.T) {
	variants(t, func(t *testing.T, m *machine) {
		m.script(t, "i=1; while [ $i -le 64 ]; do kill -$i 1 2>/dev/null || true; i=$((i+1)); done")
		m.script(t, "true")
		for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGSEGV, unix.SIGABRT, unix.SIGPIPE, unix.SIGUSR1} {
			if err := m.guest.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			m.script(t, "true")
		}
	})
}

// A user of the machine that is not root cannot touch the agent.
func TestAttackByUser(t *testing.T) {
	m := newMachine(t, true)
	_, errs, e := m.run(t, sandbox.Command{Script: "cat /proc/1/environ", User: "nobody"})
	if e.Code == 0 || !strings.Contains(errs, "denied") {
		t.Errorf("%+v %s", e, errs)
	}
}
