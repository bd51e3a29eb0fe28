package agent

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine restricts this process, for good, and all that it will start: a
// seccomp filter closes ways around the seal that no packet filter sees. It
// covers the agent too, so that root of the machine gains nothing by taking the
// agent over. It does not set no_new_privs, so su and ping work; that takes
// CAP_SYS_ADMIN in the machine's user namespace, which the agent has.
func confine(apart bool) error {
	filter := seccompFilter(apart)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("installing the seccomp filter: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("installing the seccomp filter: thread %d has another one", r)
	}
	return nil
}

// families are the address families of sockets that the seal covers, or that
// reach nothing. All others are as good as not built in: AF_XDP sends frames
// past every hook, AF_VSOCK reaches the hypervisor, AF_QIPCRTR and others know
// no network namespaces.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG}

// A denial is a system call and the error that it ends with.
type denial struct {
	nr    uint32
	errno unix.Errno
}

// denials says which calls no command may make.
//
// New namespaces stay allowed: a network namespace made inside has nothing but
// a loopback of its own, and what is made in it is no nearer to the outside.
var denials = []denial{
	// io_uring makes sockets without the system call that is filtered here.
	{unix.SYS_IO_URING_SETUP, unix.ENOSYS},
	{unix.SYS_IO_URING_ENTER, unix.ENOSYS},
	{unix.SYS_IO_URING_REGISTER, unix.ENOSYS},
	// Keyrings hold the host's keys, and are not of any namespace.
	{unix.SYS_ADD_KEY, unix.ENOSYS},
	{unix.SYS_REQUEST_KEY, unix.ENOSYS},
	{unix.SYS_KEYCTL, unix.ENOSYS},
	// The kernel is the host's.
	{unix.SYS_BPF, unix.EPERM},
	{unix.SYS_PERF_EVENT_OPEN, unix.EPERM},
	{unix.SYS_INIT_MODULE, unix.EPERM},
	{unix.SYS_FINIT_MODULE, unix.EPERM},
	{unix.SYS_DELETE_MODULE, unix.EPERM},
	{unix.SYS_KEXEC_LOAD, unix.EPERM},
	{unix.SYS_KEXEC_FILE_LOAD, unix.EPERM},
	{unix.SYS_OPEN_BY_HANDLE_AT, unix.EPERM},
	{unix.SYS_SYSLOG, unix.EPERM}, // its log tells of the host's life
}

// Offsets in struct seccomp_data. Arguments are 64 bits wide; both
// architectures are little-endian, and the kernel takes a family as an int, so
// the low half of the first argument is what counts.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArg0 = 16
)

// seccompFilter assembles the program. Every comparison jumps over the one
// return that follows it, so there are no offsets to get wrong.
// Where units are kept apart there are no packet sockets: no rule inside would
// see whose frames they send.
func seccompFilter(apart bool) []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	fail := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	// unless skips the next instruction unless the loaded value is k.
	unless := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: 1}
	}
	when := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 1}
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}

	// Another architecture's calls have other numbers (32-bit programs), so
	// that nothing below would mean what it says.
	p := []unix.SockFilter{load(offsetArch), when(auditArch), fail(unix.ENOSYS), load(offsetNr)}
	if x32Bit != 0 {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jf: 1}, fail(unix.ENOSYS))
	}
	for _, d := range denials {
		p = append(p, unless(d.nr), fail(d.errno))
	}
	p = append(p, when(unix.SYS_SOCKET), allow, load(offsetArg0))
	for _, f := range families {
		if apart && f == unix.AF_PACKET {
			continue
		}
		p = append(p, unless(f), allow)
	}
	return append(p, fail(unix.EAFNOSUPPORT))
}
