package sandboxtest

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// netlinkRequest is a route request with attributes that no library offers.
type netlinkRequest struct{ b []byte }

func newRequest(typ, flags uint16) *netlinkRequest {
	r := &netlinkRequest{b: make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)}
	if typ == unix.RTM_GETADDR {
		r.b = r.b[:unix.SizeofNlMsghdr+unix.SizeofIfAddrmsg]
	}
	binary.NativeEndian.PutUint16(r.b[4:], typ)
	binary.NativeEndian.PutUint16(r.b[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return r
}

func (r *netlinkRequest) attr(typ uint16, data []byte) *netlinkRequest {
	r.b = binary.NativeEndian.AppendUint16(r.b, uint16(4+len(data)))
	r.b = binary.NativeEndian.AppendUint16(r.b, typ)
	r.b = append(r.b, data...)
	for len(r.b)%4 != 0 {
		r.b = append(r.b, 0)
	}
	return r
}

func (r *netlinkRequest) int32(typ uint16, v int32) *netlinkRequest {
	return r.attr(typ, binary.NativeEndian.AppendUint32(nil, uint32(v)))
}

func (r *netlinkRequest) string(typ uint16, s string) *netlinkRequest {
	return r.attr(typ, append([]byte(s), 0))
}

func (r *netlinkRequest) nested(outer, inner uint16, s string) *netlinkRequest {
	var n netlinkRequest
	n.string(inner, s)
	return r.attr(outer, n.b)
}

func (r *netlinkRequest) index(i int) *netlinkRequest {
	binary.NativeEndian.PutUint32(r.b[unix.SizeofNlMsghdr+4:], uint32(i))
	return r
}

func (r *netlinkRequest) up() *netlinkRequest {
	binary.NativeEndian.PutUint32(r.b[unix.SizeofNlMsghdr+8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(r.b[unix.SizeofNlMsghdr+12:], unix.IFF_UP)
	return r
}

// send sends it and returns how many objects came back, and the kernel's error.
func (r *netlinkRequest) send() (objects int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	// Without it attributes of a dump are not even looked at.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return 0, err
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	binary.NativeEndian.PutUint32(r.b, uint32(len(r.b)))
	if err := unix.Sendto(fd, r.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return objects, fmt.Errorf("no answer: %w", err)
		}
		for b := buf[:n]; len(b) >= 16; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < 16 || size > len(b) {
				return objects, fmt.Errorf("a message of %d bytes", size)
			}
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_ERROR:
				if errno := -int32(binary.NativeEndian.Uint32(b[16:])); errno != 0 {
					return objects, unix.Errno(errno)
				}
				return objects, nil
			case unix.NLMSG_DONE:
				return objects, nil
			default:
				objects++
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}
