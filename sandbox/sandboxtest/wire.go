package sandboxtest

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetSocket returns a socket that sees every frame of the network namespace
// that it is made in.
func packetSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return 0, fmt.Errorf("making a packet socket: %w", err)
	}
	// Whatever a flood brings must fit until it is read.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// packet is a frame as a witness saw it, cut off after some hundred bytes.
type packet struct {
	link     int
	outgoing bool
	kind     uint16 // EtherType
	data     []byte // from the link's header on
}

// readPackets calls f for each frame that fd sees, until fd is shut down.
func readPackets(fd int, f func(packet)) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR || err == unix.ENOBUFS || err == unix.ENETDOWN {
			continue
		}
		if err != nil {
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		f(packet{link: ll.Ifindex, outgoing: ll.Pkttype == unix.PACKET_OUTGOING, kind: htons(ll.Protocol), data: slices.Clone(buf[:min(n, 512)])})
	}
}

// fields are what a packet says, as far as it can be read.
type fields struct {
	version          int
	protocol         int
	src, dst         netip.Addr
	sport, dport     uint16
	fragment, opaque bool   // opaque: options or extension headers stand before the protocol's
	id               uint32 // of a fragment
	offset           int    // of a fragment, in bytes
}

func (p packet) parse() fields {
	var f fields
	if len(p.data) < 14 {
		return f
	}
	b := p.data[14:]
	switch {
	case p.kind == unix.ETH_P_IP && len(b) >= 20:
		f.version, f.protocol = 4, int(b[9])
		f.src, _ = netip.AddrFromSlice(b[12:16])
		f.dst, _ = netip.AddrFromSlice(b[16:20])
		f.fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0
		f.id, f.offset = uint32(binary.BigEndian.Uint16(b[4:])), int(binary.BigEndian.Uint16(b[6:])&0x1fff)*8
		f.opaque = b[0] != 0x45
		b = b[20:]
	case p.kind == unix.ETH_P_IPV6 && len(b) >= 40:
		f.version, f.protocol = 6, int(b[6])
		f.src, _ = netip.AddrFromSlice(b[8:24])
		f.dst, _ = netip.AddrFromSlice(b[24:40])
		b = b[40:]
		if f.protocol == 44 && len(b) >= 8 {
			f.fragment, f.protocol = true, int(b[0])
			f.id, f.offset = binary.BigEndian.Uint32(b[4:]), int(binary.BigEndian.Uint16(b[2:])&^7)
			b = b[8:]
		}
		f.opaque = f.protocol == 0 || f.protocol == 43 || f.protocol == 44 || f.protocol == 60
	default:
		return f
	}
	if (f.protocol == unix.IPPROTO_TCP || f.protocol == unix.IPPROTO_UDP) && len(b) >= 4 && f.offset == 0 {
		f.sport, f.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return f
}

func (p packet) String() string {
	f := p.parse()
	way := "in"
	if p.outgoing {
		way = "out"
	}
	if f.version == 0 {
		return fmt.Sprintf("link %d %s ether/0x%04x %s", p.link, way, p.kind, hex.EncodeToString(p.data))
	}
	return fmt.Sprintf("link %d %s ip/%d %s -> %s fragment=%t options=%t %q", p.link, way, f.protocol,
		netip.AddrPortFrom(f.src, f.sport), netip.AddrPortFrom(f.dst, f.dport), f.fragment, f.opaque, p.data[min(len(p.data), 34):])
}

// wire is the witness on the stage's network: loopback and all links.
type wire struct {
	mu       sync.Mutex
	packets  []packet
	expected map[uint16]bool // ports of the tests' own servers, while they live
	secret   string          // in every mark
}

// openWire takes over the socket that the stage has made.
func openWire(t testing.TB) *wire {
	w := &wire{expected: map[uint16]bool{}, secret: rand.Text()}
	if _, err := unix.FcntlInt(wireFile, unix.F_GETFD, 0); err != nil {
		t.Fatalf("the stage gave no witness: %v", err)
	}
	unix.CloseOnExec(wireFile)
	go readPackets(wireFile, func(p packet) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.packets = append(w.packets, p)
	})
	// A witness that sees nothing proves nothing.
	w.mark(t)
	return w
}

// expect says that a server of the tests listens on port until the test ends.
func (w *wire) expect(t testing.TB, port uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expected[port] = true
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.expected, port)
	})
}

// mark returns how many packets there were, after it has seen one of its own
// making, and with it all earlier ones.
func (w *wire) mark(t testing.TB) int {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	text := fmt.Sprintf("%s %d", w.secret, time.Now().UnixNano())
	if _, err := l.WriteTo([]byte(text), l.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	seen := 0
	eventually(t, "the host's witness sees what it is shown", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, p := range w.packets {
			if strings.HasSuffix(string(p.data), text) {
				seen = i + 1
				return true
			}
		}
		return false
	})
	return seen
}

// strange returns what went over the host's network since mark and is not the
// tests' own.
func (w *wire) strange(t testing.TB, mark int) []string {
	t.Helper()
	end := w.mark(t)
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []string
	for _, p := range w.packets[mark:end] {
		f := p.parse()
		if w.expected[f.dport] || w.expected[f.sport] || ownChatter(p) || strings.Contains(string(p.data), w.secret) {
			continue
		}
		found = append(found, p.String())
	}
	return found
}

// ownChatter reports whether p is what a kernel says by itself on a new link:
// its memberships and questions for routers.
func ownChatter(p packet) bool {
	if p.kind != unix.ETH_P_IPV6 || len(p.data) < 14+48+1 {
		return false
	}
	b := p.data[14:]
	multicast := b[24] == 0xff && b[25] == 0x02
	own := b[8] == 0xfe && b[9] == 0x80 || slices.Max(b[8:24]) == 0
	return multicast && own && (b[6] == 0 && b[48] == 143 || b[6] == 58 && (b[40] == 133 || b[40] == 135))
}

// watcher sees frames behind the seal, where there is such a place.
type watcher struct {
	file *os.File
	mu   sync.Mutex
	seen []packet
}

func (s *suite) watchOutside(t testing.TB, env interface{ Name() string }, f *os.File) *watcher {
	w := &watcher{file: f}
	go readPackets(int(f.Fd()), func(p packet) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen = append(w.seen, p)
	})
	t.Cleanup(func() { unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR); f.Close() })
	return w
}

func (w *watcher) strange() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []string
	for _, p := range w.seen {
		if !ownChatter(p) {
			found = append(found, p.String())
		}
	}
	return found
}

// printable makes packets short enough to read.
func printable(found []string) string {
	if len(found) > 12 {
		found = append(found[:12:12], fmt.Sprintf("and %d more", len(found)-12))
	}
	return strings.Join(found, "\n\t")
}
