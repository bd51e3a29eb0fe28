package sandboxtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// outside is the world beyond the seal: a server on the host's loopback that
// stands for every address that is allowed, and witnesses for all else.
type outside struct {
	s        *suite
	tcp, udp netip.AddrPort // the server, which says "at ADDRESS " and what it heard
	icmp     netip.AddrPort // what answers echo requests, carried by UDP
	dark4    uint16         // ports of the host where a witness listens
	darkU    uint16

	mu    sync.Mutex
	dials []string             // what was dialled: "tcp 192.0.2.10:443"
	heard []string             // what the server heard
	fail  map[netip.Addr]error // addresses that refuse
	hang  map[netip.Addr]bool  // addresses that never answer
}

func (s *suite) outside(t testing.TB) *outside {
	t.Helper()
	o := &outside{s: s, fail: map[netip.Addr]error{}, hang: map[netip.Addr]bool{}}
	listen := func(network, addr string) net.Listener {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	packets := func(addr string) (net.PacketConn, netip.AddrPort) {
		l, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l, l.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	l := listen("tcp", "127.0.0.1:0")
	o.tcp = l.Addr().(*net.TCPAddr).AddrPort()
	s.wire.expect(t, o.tcp.Port())
	var conns sync.Map
	t.Cleanup(func() { conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true }) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, nil)
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if line != "" {
						o.hear("tcp " + line)
					}
					if err != nil {
						return
					}
					fmt.Fprintf(c, "outside %s", line)
				}
			}()
		}
	}()
	u, addr := packets("127.0.0.1:0")
	o.udp = addr
	s.wire.expect(t, addr.Port())
	go answer(u, func(b []byte) []byte {
		o.hear("udp " + string(b))
		return append([]byte("outside "), b...)
	})
	i, addr := packets("127.0.0.1:0")
	o.icmp = addr
	s.wire.expect(t, addr.Port())
	go answer(i, func(b []byte) []byte {
		o.hear(fmt.Sprintf("icmp %q", b))
		return echoReply(b)
	})
	// Witnesses on all addresses of the host.
	d := listen("tcp", "[::]:0")
	o.dark4 = d.Addr().(*net.TCPAddr).AddrPort().Port()
	s.serve(t, d)
	w, addr := packets("[::]:0")
	o.darkU = addr.Port()
	go answer(w, func(b []byte) []byte {
		s.hits <- fmt.Sprintf("udp %d %q", o.darkU, b)
		return nil
	})
	return o
}

func answer(l net.PacketConn, f func([]byte) []byte) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		if b := f(slices.Clone(buf[:n])); b != nil {
			l.WriteTo(b, from)
		}
	}
}

// echoReply makes a request into its reply.
func echoReply(b []byte) []byte {
	if len(b) < 8 {
		return nil
	}
	switch b[0] {
	case 8:
		b[0] = 0
	case 128:
		b[0] = 129
	default:
		return nil
	}
	b[2], b[3] = 0, 0
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (o *outside) hear(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heard = append(o.heard, what)
}

// dial is the Spec.Dial of the tests: every address is the one server.
func (o *outside) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	o.mu.Lock()
	o.dials = append(o.dials, network+" "+to.String())
	err, hang := o.fail[to.Addr()], o.hang[to.Addr()]
	o.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	switch network {
	case "tcp":
		return d.DialContext(ctx, "tcp", o.tcp.String())
	case "udp":
		return d.DialContext(ctx, "udp", o.udp.String())
	case "icmp":
		return d.DialContext(ctx, "udp", o.icmp.String())
	}
	return nil, fmt.Errorf("dialling %s: what is that?", network)
}

func (o *outside) dialled() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.dials)
}

func (o *outside) refuse(a string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail[netip.MustParseAddr(a)] = unix.ECONNREFUSED
}

func (o *outside) silence(a string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hang[netip.MustParseAddr(a)] = true
}
