package gate

import (
	"fmt"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside runs f in the network namespace of the descriptor netNS, or where it
// is if that is zero. Sockets that f makes stay there.
func inside(netNS int, f func() error) error {
	if netNS == 0 {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends
		if err := unix.Setns(netNS, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the hub's namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// transparent lets a socket have addresses that are not the hub's, and share
// them.
func transparent(network, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(f uintptr) {
		fd := int(f)
		level, option, original := unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR
		if network[len(network)-1] == '6' {
			level, option, original = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR
		}
		if failed = unix.SetsockoptInt(fd, level, option, 1); failed != nil {
			return
		}
		if failed = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); failed != nil {
			return
		}
		if network[:3] == "udp" {
			failed = unix.SetsockoptInt(fd, level, original, 1)
		}
	})
	if failed != nil {
		return fmt.Errorf("making a transparent socket: %w", failed)
	}
	return err
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }
