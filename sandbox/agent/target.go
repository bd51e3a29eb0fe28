package agent

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// destination makes an attempt of a socket and a socket address. It is false for
// what reaches nobody, and for Unix sockets that are there.
func (w *watcher) destination(pid, fd int, name []byte) (Attempt, bool) {
	var to netip.AddrPort
	switch binary.NativeEndian.Uint16(name) {
	case unix.AF_INET:
		if len(name) < 8 {
			return Attempt{}, false
		}
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:8])), binary.BigEndian.Uint16(name[2:]))
	case unix.AF_INET6:
		if len(name) < 24 {
			return Attempt{}, false
		}
		to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(name[8:24])).Unmap(), binary.BigEndian.Uint16(name[2:]))
	case unix.AF_UNIX:
		p := string(name[2:])
		if p == "" {
			return Attempt{}, false
		}
		if p[0] == 0 {
			return Attempt{Protocol: "unix", Path: "@" + p[1:]}, !w.listed("@"+p[1:], pid)
		}
		p, _, _ = strings.Cut(p, "\x00")
		return Attempt{Protocol: "unix", Path: w.absolute(p, pid)}, !w.exists(p, pid)
	default:
		return Attempt{}, false
	}
	if a := to.Addr(); a.IsUnspecified() { // which the kernel takes for loopback
		loopback := netip.IPv6Loopback()
		if a.Is4() {
			loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		to = netip.AddrPortFrom(loopback, to.Port())
	}
	own, err := socketOf(pid, fd)
	if err != nil {
		return Attempt{}, false
	}
	protocol := protocolOf(own, to.Addr())
	if protocol != "tcp" && protocol != "udp" {
		to = netip.AddrPortFrom(to.Addr(), 0)
	}
	a := Attempt{Protocol: protocol, To: to}
	if protocol == "udp" && to.Port() == portNames {
		a.socket = own
	} else {
		unix.Close(own)
	}
	return a, protocol != ""
}

// bound notes which port the kernel has given to the socket, now that the call
// goes on.
func (a *Attempt) bound() {
	if a.socket == 0 {
		return
	}
	defer unix.Close(a.socket)
	for range 50 {
		if sa, err := unix.Getsockname(a.socket); err == nil {
			port := 0
			switch sa := sa.(type) {
			case *unix.SockaddrInet4:
				port = sa.Port
			case *unix.SockaddrInet6:
				port = sa.Port
			}
			if port != 0 {
				a.Ports = []uint16{uint16(port)}
				return
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// socketOf returns a copy of a process's descriptor.
func socketOf(pid, fd int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// protocolOf returns the protocol of a socket, as a Flow names it.
func protocolOf(own int, to netip.Addr) string {
	number, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return ""
	}
	switch number {
	case unix.IPPROTO_TCP, unix.IPPROTO_MPTCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_RAW:
		if to.Is6() {
			return "icmpv6" // what is sent is in the packet; most often it is an echo
		}
		return "icmp"
	}
	return "ip/" + strconv.Itoa(number)
}

// absolute is a path as the process means it, without the symbolic links on the
// way: /var/run is /run.
func (w *watcher) absolute(p string, pid int) string {
	if !path.IsAbs(p) {
		var b [unix.PathMax]byte
		n, err := unix.Readlinkat(int(w.proc.Fd()), strconv.Itoa(pid)+"/cwd", b[:])
		if err != nil {
			return p
		}
		p = path.Join(string(b[:n]), p)
	}
	p = path.Clean(p)
	// The last folders need not be there; what is there says where it leads.
	for dir, rest := path.Dir(p), path.Base(p); dir != "/"; dir, rest = path.Dir(dir), path.Join(path.Base(dir), rest) {
		fd, err := unix.Openat(int(w.proc.Fd()), strconv.Itoa(pid)+"/root"+dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		var b [unix.PathMax]byte
		n, err := unix.Readlinkat(int(w.proc.Fd()), "self/fd/"+strconv.Itoa(fd), b[:])
		if err != nil || n == 0 || b[0] != '/' {
			return p
		}
		return path.Join(string(b[:n]), rest)
	}
	return p
}

// exists reports whether a process finds a path.
func (w *watcher) exists(p string, pid int) bool {
	from := "/cwd/"
	if path.IsAbs(p) {
		from = "/root/"
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(w.proc.Fd()), strconv.Itoa(pid)+from+p, &st, 0)
	return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)
}

// listed reports whether somebody listens on an abstract name.
func (w *watcher) listed(name string, pid int) bool {
	for line := range bytes.Lines(w.readProc(pid, "net/unix")) {
		if f := bytes.Fields(line); len(f) == 8 && string(f[7]) == name {
			return true
		}
	}
	return false
}

// A Listener is a socket that takes what comes: a listening one of TCP, or one of
// UDP that is not connected. Its address may be unspecified.
type Listener struct {
	Protocol string
	At       netip.AddrPort
}

// Takes reports whether what is sent to an address of the listener's own machine
// arrives at it.
func (l Listener) Takes(protocol string, to netip.AddrPort) bool {
	at := l.At.Addr()
	if l.Protocol != protocol || l.At.Port() != to.Port() {
		return false
	}
	// One of [::] most often takes IPv4 too.
	return at == to.Addr() || at.IsUnspecified() && (at.Is6() || to.Addr().Is4())
}

// listening returns what listens in this machine.
func (w *watcher) listening() []Listener {
	var out []Listener
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		protocol := name[:3]
		for line := range bytes.Lines(w.readProc(w.self, "net/"+name)) {
			if l, ok := parseListener(protocol, line); ok {
				out = append(out, l)
			}
		}
	}
	return out
}

// parseListener reads a line of /proc/net/tcp and its like: number, own address,
// the other's, state.
func parseListener(protocol string, line []byte) (Listener, bool) {
	const listens, unconnected = "0A", "07"
	f := strings.Fields(string(line))
	if len(f) < 4 || f[3] != map[string]string{"tcp": listens, "udp": unconnected}[protocol] {
		return Listener{}, false
	}
	host, port, ok := strings.Cut(f[1], ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(b)%4 != 0 {
		return Listener{}, false
	}
	for i := 0; i < len(b); i += 4 { // words, in the order of this machine's bytes
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return Listener{Protocol: protocol, At: netip.AddrPortFrom(a.Unmap(), uint16(n))}, ok
}
