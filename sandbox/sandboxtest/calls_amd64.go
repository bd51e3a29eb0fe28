package sandboxtest

import (
	"errors"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// int80 makes a system call of the i386 table.
func int80(nr, a, b, c uint32) int32

// i386 is int80 where the kernel may have been built without that table: there
// the instruction is a fault.
func i386(nr, a, b, c uint32) (n int, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errors.New("this kernel has no calls for 32-bit programs")
		}
	}()
	if r := int80(nr, a, b, c); r < 0 {
		return 0, unix.Errno(-r)
	} else {
		return int(r), nil
	}
}

// foreignCalls use other tables of system calls, whose numbers a filter for
// this one would take for something else.
func foreignCalls() []call {
	const x32 = 1 << 30
	calls := []call{
		{"socket by the x32 table, AF_XDP", func() (int, error) { return result(unix.Syscall(x32|unix.SYS_SOCKET, 44, unix.SOCK_RAW, 0)) }},
		{"socket by the x32 table, AF_VSOCK", func() (int, error) {
			return result(unix.Syscall(x32|unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0))
		}},
		{"io_uring by the x32 table", func() (int, error) { return result(unix.Syscall(x32|unix.SYS_IO_URING_SETUP, 1, 0, 0)) }},
	}
	for _, x := range []struct {
		name    string
		nr      uint32
		a, b, c uint32
	}{
		{"socket by the i386 table, AF_XDP", 359, 44, unix.SOCK_RAW, 0},
		{"socket by the i386 table, AF_VSOCK", 359, unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{"io_uring by the i386 table", 425, 1, 0, 0},
		{"getpid by the i386 table", 20, 0, 0, 0},
	} {
		calls = append(calls, call{x.name, func() (int, error) { return i386(x.nr, x.a, x.b, x.c) }})
	}
	return calls
}

func rawPorts() (int, error) {
	if _, err := result(unix.Syscall(unix.SYS_IOPL, 3, 0, 0)); err == nil {
		return 3, nil
	}
	return result(unix.Syscall(unix.SYS_IOPERM, 0x70, 2, 1))
}
