package gate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxHeld bounds the packets that the kernel holds for the relay: the further
// ones are dropped.
const maxHeld = 4096

const queueBuffer = 4 << 20 // of the socket, in bytes

// queue is the kernel's queue of held packets.
type queue struct {
	nf     *nfqueue.Nfqueue
	cancel context.CancelFunc
}

// packet is one that is held: a TCP segment that opens a connection, or an
// ICMP echo request.
type packet struct {
	id   uint32 // in the queue
	mark uint32
	pair pair   // ports are 0 for ICMP
	echo []byte // the ICMP message; nil for TCP
}

// openQueue calls f, from one goroutine, for every packet that is held. Failed
// is called if the queue ends without ctx.
func openQueue(ctx context.Context, netNS int, number uint16, f func(*queue, packet), failed func(error)) (*queue, error) {
	nf, err := nfqueue.Open(&nfqueue.Config{
		NetNS: netNS, NfQueue: number, MaxQueueLen: maxHeld, MaxPacketLen: 0xffff,
		Copymode: nfqueue.NfQnlCopyPacket, AfFamily: unix.AF_UNSPEC,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the queue of held packets: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	q := &queue{nf: nf, cancel: cancel}
	if err := errors.Join(nf.Con.SetReadBuffer(queueBuffer), nf.SetOption(netlink.NoENOBUFS, true)); err != nil {
		cancel()
		nf.Con.Close()
		return nil, fmt.Errorf("setting up the queue of held packets: %w", err)
	}
	err = nf.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
		if a.PacketID == nil {
			return 0
		}
		p := packet{}
		ok := a.Payload != nil
		if ok {
			p, ok = parse(*a.Payload)
		}
		p.id = *a.PacketID
		if a.Mark != nil {
			p.mark = *a.Mark
		}
		if !ok {
			q.drop(p)
			return 0
		}
		f(q, p)
		return 0
	}, func(err error) int {
		var op *netlink.OpError
		if ctx.Err() == nil && (errors.Is(err, unix.ENOBUFS) || errors.As(err, &op) && (op.Timeout() || op.Temporary())) {
			return 0
		}
		if ctx.Err() == nil {
			failed(fmt.Errorf("reading held packets: %w", err))
		}
		return 1
	})
	if err != nil {
		cancel()
		nf.Con.Close()
		return nil, fmt.Errorf("binding the queue of held packets: %w", err)
	}
	return q, nil
}

func (q *queue) close() {
	if q == nil {
		return
	}
	q.cancel()
	q.nf.Close()
}

// drop and pass are the two verdicts. A verdict that cannot be given leaves the
// packet held, which is as good as dropped.
func (q *queue) drop(p packet) { _ = q.nf.SetVerdict(p.id, nfqueue.NfDrop) }

func (q *queue) pass(p packet, mark uint32) {
	_ = q.nf.SetVerdictWithOption(p.id, nfqueue.NfAccept, nfqueue.WithMark(mark))
}

// parse reads a held packet: IPv4 or IPv6 without options, carrying the first
// segment of a TCP connection or a whole ICMP echo request.
func parse(b []byte) (packet, bool) {
	var p packet
	var protocol byte
	var from, to netip.Addr
	switch {
	case len(b) >= 20 && b[0] == 0x45:
		protocol = b[9]
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		total := int(binary.BigEndian.Uint16(b[2:]))
		if total < 20 || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return p, false
		}
		b = b[20:total]
	case len(b) >= 40 && b[0]>>4 == 6:
		protocol = b[6]
		from, to = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return p, false
		}
		b = b[40:total]
	default:
		return p, false
	}
	switch {
	case protocol == unix.IPPROTO_TCP && len(b) >= 20 && b[13]&0x17 == 0x02:
		p.pair = pair{netip.AddrPortFrom(from, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))}
		return p, true
	case len(b) >= 8 && b[1] == 0 && (protocol == unix.IPPROTO_ICMP && b[0] == echoRequest4 || protocol == unix.IPPROTO_ICMPV6 && b[0] == echoRequest6):
		p.pair = pair{netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)}
		p.echo = b
		return p, true
	}
	return p, false
}

// unitOf returns the unit that has sent a held packet, or "".
func (r *Relay) unitOf(p packet) string {
	for i, u := range r.Units {
		if p.mark == r.MarkUnit(i+1) {
			return u
		}
	}
	return ""
}

// held decides about one held packet.
func (r *Relay) held(q *queue, p packet) {
	if p.echo != nil {
		q.drop(p)
		r.ping(p)
		return
	}
	r.open(q, p)
}
