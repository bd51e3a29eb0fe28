package run

import (
	"fmt"
	"net/netip"
	"slices"

	"bj/fleet"
	"bj/graph"
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
		b.Service, b.Pathway = &s.Name, found[0].name
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

// owners returns the pathways that own e, by name.
func owners(f *fleet.Fleet, e fleet.Endpoint) []pathway {
	var found []pathway
	for _, p := range graph.NewOwners(f.Services).Of(&e) {
		found = append(found, pathway{p.Service, p.Name})
	}
	return found
}
