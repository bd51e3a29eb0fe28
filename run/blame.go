package run

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bj/fleet"
	"bj/run/event"
	"bj/sandbox"
)

// blame says of a blocked attempt who owns its destination, and which line
// would allow it. It is a pure function of the fleet and the attempt.
func blame(f *fleet.Fleet, flow sandbox.Flow) event.Blocked {
	b := event.Blocked{
		Protocol:    flow.Protocol,
		Destination: event.Destination{Address: addrText(flow.Destination.Addr()), Port: int(flow.Destination.Port())},
		Count:       flow.Count,
	}
	if flow.Name != "" {
		b.Destination.Name = &flow.Name
	}
	if o := flow.Origin; o != nil {
		b.Process = &event.Process{PID: o.PID, Exe: o.Exe, Argv: slices.Clone(o.Argv), Unit: o.Unit}
	}
	scheme, ok := schemeOf(flow.Protocol)
	if !ok || !flow.Destination.Addr().IsValid() {
		return b
	}
	to := flow.Destination.Addr().Unmap()
	want := fleet.Endpoint{Scheme: scheme, Prefix: netip.PrefixFrom(to, to.BitLen())}
	if port := flow.Destination.Port(); scheme != "icmp" {
		want.Ports = fleet.Ports{Protocol: scheme, First: port, Last: port}
	}
	if found := owners(f, want); len(found) > 0 {
		s := f.Service(found[0].service)
		b.Service = &s.Name
		if len(s.Pathways) == 1 {
			b.Allow = fmt.Sprintf("allow(%q)", s.Name)
		} else {
			b.Allow = fmt.Sprintf("allow(%q, %q)", s.Name, found[0].name)
		}
		return b
	}
	b.Allow = fmt.Sprintf("allow(%q)", literal(scheme, flow.Destination))
	return b
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// schemeOf returns the scheme of the endpoints that could allow a protocol.
func schemeOf(protocol string) (string, bool) {
	switch protocol {
	case "tcp", "udp", "icmp":
		return protocol, true
	case "icmpv6":
		return "icmp", true
	}
	return "", false // no endpoint can name it
}

// literal writes a destination as an endpoint.
func literal(scheme string, to netip.AddrPort) string {
	if scheme == "icmp" {
		if a := to.Addr().Unmap(); a.Is4() {
			return "icmp://" + a.String()
		}
		return "icmp://[" + to.Addr().String() + "]"
	}
	return scheme + "://" + netip.AddrPortFrom(to.Addr().Unmap(), to.Port()).String()
}

// owners returns the pathways whose endpoints cover e, those of the most
// specific endpoint alone: the longest prefix, then the smallest range of
// ports. A tie gives each, by name.
func owners(f *fleet.Fleet, e fleet.Endpoint) []pathway {
	type score struct{ bits, ports int }
	var best score
	var found []pathway
	for _, s := range f.Services {
		for _, p := range s.Pathways {
			for _, x := range p.Endpoints {
				if !covers(x, e) {
					continue
				}
				got := score{x.Prefix.Bits(), int(x.Ports.Last) - int(x.Ports.First)}
				order := cmp.Or(cmp.Compare(got.bits, best.bits), cmp.Compare(best.ports, got.ports))
				if len(found) > 0 && order < 0 {
					continue
				}
				if order > 0 {
					found = found[:0]
				}
				best = got
				found = append(found, pathway{s.Name, p.Name})
			}
		}
	}
	slices.SortFunc(found, func(a, b pathway) int {
		return cmp.Or(strings.Compare(a.service, b.service), strings.Compare(a.name, b.name))
	})
	return slices.Compact(found)
}

// covers reports whether everything that e reaches is within x.
func covers(x, e fleet.Endpoint) bool {
	if !x.Prefix.IsValid() || !e.Prefix.IsValid() || transport(x.Scheme) != transport(e.Scheme) || transport(x.Scheme) == "" {
		return false
	}
	if x.Prefix.Addr().Is4() != e.Prefix.Addr().Is4() || x.Prefix.Bits() > e.Prefix.Bits() || !x.Prefix.Contains(e.Prefix.Addr()) {
		return false
	}
	return transport(x.Scheme) == "icmp" || (x.Ports.First <= e.Ports.First && e.Ports.Last <= x.Ports.Last)
}

// transport returns the protocol that an endpoint of a scheme needs at the IP layer.
func transport(scheme string) string {
	switch scheme {
	case "tcp", "http", "https":
		return "tcp"
	case "udp", "icmp":
		return scheme
	}
	return ""
}
