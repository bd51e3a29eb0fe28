package agent

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_X86_64
	// x32Bit marks the calls of a second set of numbers, for 32-bit pointers.
	x32Bit = 0x40000000
)
