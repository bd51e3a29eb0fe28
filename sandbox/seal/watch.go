package seal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	nflog "github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Drop is one packet that the rules have dropped.
type Drop struct {
	Time     time.Time
	In, Out  string // interfaces; empty if there is none
	Reason   string // "forged", "closed", "stray", "interface"
	Protocol string // as in sandbox.Flow: "tcp", "icmpv6", "ip/132"
	Source   netip.AddrPort
	// Destination has port 0 where the protocol has none.
	Destination netip.AddrPort
	ICMPType    int // -1 if it is not ICMP
	Length      int // of the packet, as its header says
	// Unit is the number of the unit that has sent it, as its mark in the hub says;
	// Tag is what rules inside a machine have written into it. 0 is none.
	Unit, Tag int
}

// watchBuffer holds what was dropped and not yet looked at, in bytes.
const watchBuffer = 4 << 20

// Watch calls f, from one goroutine, for every packet that is logged to group
// in the namespace that netNS refers to (zero: the caller's own), until ctx is
// done. It returns nil then, and an error if it cannot watch. Ready, if not
// nil, is closed when nothing is missed from then on. A flood of packets can
// overrun it: Counters have the true number.
func Watch(ctx context.Context, netNS int, group uint16, ready chan<- struct{}, f func(Drop)) error {
	links, err := openLinks(netNS)
	if err != nil {
		return fmt.Errorf("watching drops: %w", err)
	}
	defer links.handle.Close()
	for tries := 1; ; tries++ {
		err := watchOnce(ctx, netNS, group, links, ready, f)
		// What is dropped while the log is being set up comes between its answers,
		// which the library takes for a wrong one.
		if !errors.Is(err, errSetup) || tries == setupTries || ctx.Err() != nil {
			return err
		}
	}
}

// setupTries is how often setting up the log is tried, which takes less than a
// millisecond: traffic that comes between each time is a flood.
const setupTries = 50

var errSetup = errors.New("binding the log of dropped packets")

func watchOnce(ctx context.Context, netNS int, group uint16, links *links, ready chan<- struct{}, f func(Drop)) error {
	log, err := nflog.Open(&nflog.Config{NetNS: netNS, Group: group, Copymode: nflog.CopyPacket, Bufsize: snapLength, QThresh: 1, Timeout: 1})
	if err != nil {
		return fmt.Errorf("opening the log of dropped packets: %w", err)
	}
	var closing sync.Once
	defer closing.Do(func() { log.Close() })
	if err := log.Con.SetReadBuffer(watchBuffer); err != nil {
		return fmt.Errorf("sizing the log of dropped packets: %w", err)
	}
	if err := log.SetOption(netlink.NoENOBUFS, true); err != nil {
		return fmt.Errorf("setting up the log of dropped packets: %w", err)
	}
	failed := make(chan error, 1)
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	err = log.RegisterWithErrorFunc(inner, func(a nflog.Attribute) int {
		if a.Payload == nil {
			return 0
		}
		d, ok := ParsePacket(*a.Payload)
		if !ok {
			return 0
		}
		d.Time = time.Now()
		if a.Prefix != nil {
			d.Reason = *a.Prefix
		}
		if a.Mark != nil && *a.Mark > markUnits && *a.Mark < MarkOther {
			d.Unit = int(*a.Mark - markUnits)
		}
		d.In, d.Out = links.name(a.InDev), links.name(a.OutDev)
		f(d)
		return 0
	}, func(err error) int {
		var op *netlink.OpError
		if inner.Err() == nil && (errors.Is(err, unix.ENOBUFS) || errors.As(err, &op) && (op.Timeout() || op.Temporary())) {
			return 0
		}
		failed <- err
		return 1
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errSetup, err)
	}
	if ready != nil {
		close(ready)
	}
	select {
	case <-ctx.Done():
		cancel()
		closing.Do(func() { log.Close() })
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("reading the log of dropped packets: %w", err)
	}
}

// links names interfaces by index.
type links struct {
	handle *vnetlink.Handle
	names  map[uint32]string
}

func openLinks(netNS int) (*links, error) {
	l := &links{names: map[uint32]string{}}
	var err error
	if netNS == 0 {
		l.handle, err = vnetlink.NewHandle(unix.NETLINK_ROUTE)
	} else {
		l.handle, err = vnetlink.NewHandleAt(netns.NsHandle(netNS), unix.NETLINK_ROUTE)
	}
	return l, err
}

func (l *links) name(index *uint32) string {
	if index == nil || *index == 0 {
		return ""
	}
	if name, ok := l.names[*index]; ok {
		return name
	}
	link, err := l.handle.LinkByIndex(int(*index))
	if err != nil {
		return fmt.Sprintf("#%d", *index)
	}
	l.names[*index] = link.Attrs().Name
	return link.Attrs().Name
}

// ParsePacket reads the headers of an IP packet, which may be cut off. It
// reports false for what is none.
func ParsePacket(b []byte) (Drop, bool) {
	d := Drop{ICMPType: -1}
	if len(b) == 0 {
		return d, false
	}
	var protocol byte
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0x0f) * 4
		if header < 20 || len(b) < 20 {
			return d, false
		}
		protocol = b[9]
		d.Tag = int(b[1] >> 2)
		d.Length = int(binary.BigEndian.Uint16(b[2:]))
		d.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
		d.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
		later := binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		if len(b) > header && !later {
			rest = b[header:]
		}
	case 6:
		if len(b) < 40 {
			return d, false
		}
		protocol = b[6]
		d.Tag = int(b[0]&0x0f)<<2 | int(b[1]>>6)
		d.Length = 40 + int(binary.BigEndian.Uint16(b[4:]))
		d.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
		d.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
		protocol, rest = skipExtensions(protocol, b[40:])
	default:
		return d, false
	}
	switch protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		d.Protocol = protocolName(protocol)
		if len(rest) >= 4 {
			d.Source = netip.AddrPortFrom(d.Source.Addr(), binary.BigEndian.Uint16(rest))
			d.Destination = netip.AddrPortFrom(d.Destination.Addr(), binary.BigEndian.Uint16(rest[2:]))
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		d.Protocol = "icmp"
		if protocol == unix.IPPROTO_ICMPV6 {
			d.Protocol = "icmpv6"
		}
		if len(rest) > 0 {
			d.ICMPType = int(rest[0])
		}
	default:
		d.Protocol = fmt.Sprintf("ip/%d", protocol)
	}
	return d, true
}

// skipExtensions returns the first protocol of an IPv6 packet that is no
// extension header, as far as b shows it, and what follows.
func skipExtensions(protocol byte, b []byte) (byte, []byte) {
	for {
		switch protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < 8 {
				return protocol, nil
			}
			n := 8 + int(b[1])*8
			if len(b) < n {
				return b[0], nil
			}
			protocol, b = b[0], b[n:]
		case unix.IPPROTO_FRAGMENT:
			if len(b) < 8 {
				return protocol, nil
			}
			later := binary.BigEndian.Uint16(b[2:])&0xfff8 != 0
			protocol, b = b[0], b[8:]
			if later {
				return protocol, nil
			}
		default:
			return protocol, b
		}
	}
}
