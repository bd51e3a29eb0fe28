package sandboxtest

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A call is a system call that no command may make.
type call struct {
	name string
	call func() (int, error)
}

func result(r, _ uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// otherCalls reach sockets and the kernel by other ways than socket(2).
func otherCalls() []call {
	calls := []call{
		{"socketpair of AF_VSOCK", func() (int, error) {
			fds, err := unix.Socketpair(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
			return fds[0], err
		}},
		{"io_uring", func() (int, error) {
			var params [120]byte
			return result(unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)), 0))
		}},
		{"bpf program", func() (int, error) {
			// BPF_PROG_LOAD of a socket filter: r0 = 0; exit.
			code := [2]uint64{0xb7, 0x95}
			license := [4]byte{'G', 'P', 'L', 0}
			attr := struct {
				kind, n     uint32
				code, lic   uint64
				level, size uint32
				buf         uint64
				version     uint32
				flags       uint32
				pad         [64]byte
			}{kind: 1, n: 2, code: uint64(uintptr(unsafe.Pointer(&code))), lic: uint64(uintptr(unsafe.Pointer(&license)))}
			return result(unix.Syscall(unix.SYS_BPF, 5, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
		}},
		{"bpf map", func() (int, error) {
			attr := [32]uint32{1, 4, 4, 1}
			return result(unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
		}},
		{"perf events", func() (int, error) {
			return unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, -1, 0, -1, 0)
		}},
		{"a key of the session", func() (int, error) { return unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true) }},
		{"a new key", func() (int, error) { return unix.AddKey("user", "bj", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING) }},
		{"loading a module", func() (int, error) { return 0, unix.FinitModule(0, "", 0) }},
		{"kexec", func() (int, error) { return result(unix.Syscall(unix.SYS_KEXEC_LOAD, 0, 0, 0)) }},
		{"the kernel's log", func() (int, error) { return unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil) }},
		{"setting the clock", func() (int, error) {
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
				return 0, err
			}
			return 0, unix.ClockSettime(unix.CLOCK_REALTIME, &now)
		}},
		{"bending the clock", func() (int, error) {
			return unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{Modes: unix.ADJ_TICK, Tick: 10000})
		}},
		{"swap", func() (int, error) {
			return result(unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(&[]byte("/none\x00")[0])), 0, 0))
		}},
		{"accounting", func() (int, error) { return 0, unix.Acct("/tmp") }},
		{"ports of the machine", func() (int, error) { return rawPorts() }},
		{"a file by its handle", func() (int, error) {
			h, mount, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
			_ = mount
			if err != nil {
				// Any handle will do: an inode's number and generation.
				h = unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
			}
			fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return 0, err
			}
			defer unix.Close(fd)
			n, err := unix.OpenByHandleAt(fd, h, unix.O_RDONLY)
			if err == nil {
				unix.Close(n)
			}
			return n, err
		}},
		{"memory of process 1", func() (int, error) {
			var b [16]byte
			local := []unix.Iovec{{Base: &b[0], Len: 16}}
			n, err := unix.ProcessVMReadv(1, local, []unix.RemoteIovec{{Base: 0x400000, Len: 16}}, 0)
			// The wrong address is as good a sign that one may.
			if errors.Is(err, unix.EFAULT) {
				err = nil
			}
			return n, err
		}},
		{"tracing process 1", func() (int, error) { return 0, traceFirst() }},
		{"descriptors of process 1", func() (int, error) {
			fd, err := unix.PidfdOpen(1, 0)
			if err != nil {
				return 0, err
			}
			defer unix.Close(fd)
			for i := range 40 {
				if n, err := unix.PidfdGetfd(fd, i, 0); err == nil {
					return n, nil
				}
			}
			return 0, unix.EPERM
		}},
	}
	return append(calls, foreignCalls()...)
}

// traceFirst traces process 1 for a moment. It lets go of it again: traced, it
// would stand still at its next signal, and with it what it does for this program.
func traceFirst() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(1); err != nil {
		return err
	}
	if err := unix.PtraceInterrupt(1); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(1, &status, unix.WALL, nil); err != nil {
			return err
		}
		if !status.Stopped() {
			return nil // it has ended
		}
		if int(status)>>16 == unix.PTRACE_EVENT_STOP {
			return unix.PtraceDetach(1)
		}
		if err := unix.PtraceCont(1, int(status.StopSignal())); err != nil { // a signal of its own comes first
			return err
		}
	}
}
