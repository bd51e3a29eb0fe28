package run

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

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
		First:       flow.First.UTC(), Last: flow.Last.UTC(),
	}
	if flow.Name != "" {
		b.Destination.Name = &flow.Name
	}
	if o := flow.Origin; o != nil {
		b.Process = &event.Process{PID: o.PID, Exe: o.Exe, Argv: slices.Clone(o.Argv), Unit: o.Unit, Parents: slices.Clone(o.Parents)}
	}
	switch {
	case flow.Protocol == "http" || flow.Protocol == "https":
		said := strings.TrimSpace(flow.Method + " " + flow.Name + flow.Path)
		b.Destination.Name = &said
	case flow.Path != "":
		b.Destination.Address = flow.Path
	}
	want, ok := wanted(flow)
	if !ok {
		return b
	}
	b.Endpoint, b.Methods = want.URL, want.Methods
	found := owners(f, want)
	if len(found) == 0 {
		b.Allow = fmt.Sprintf("allow(%q)", want.URL)
		if len(want.Methods) > 0 {
			b.Allow = fmt.Sprintf("allow(endpoint(%q, methods = [%q]))", want.URL, want.Methods[0])
			b.Wider = []string{fmt.Sprintf("allow(%q)", want.URL), fmt.Sprintf("allow(%q)", strings.TrimSuffix(want.URL, want.Path))}
			return b
		}
		b.Wider = widerLiterals(want, flow.Name)
		return b
	}
	s := f.Service(found[0].service)
	b.Service, b.Pathway = &s.Name, found[0].name
	b.Allow = allowLine(s, found[0].name)
	for _, other := range found[1:] {
		if len(b.Wider) < 1 {
			b.Wider = append(b.Wider, allowLine(f.Service(other.service), other.name))
		}
	}
	if len(s.Pathways) > 1 {
		b.Wider = append(b.Wider, fmt.Sprintf("allow(%q, \"*\")", s.Name))
	}
	return b
}

// allowLine writes the condition that opens one pathway.
func allowLine(s *fleet.Service, pathway string) string {
	if len(s.Pathways) == 1 {
		return fmt.Sprintf("allow(%q)", s.Name)
	}
	return fmt.Sprintf("allow(%q, %q)", s.Name, pathway)
}

// listensLine says how a service opens a port of its own machines to itself.
func listensLine(service string, flow sandbox.Flow) string {
	port := fmt.Sprint(flow.Destination.Port())
	if flow.Protocol != "tcp" {
		port = fmt.Sprintf("%q", port+"/"+flow.Protocol)
	}
	return fmt.Sprintf("listens = [%s] of service %s, whose machine it is", port, service)
}

// lacking says which socket or library of another service a failure's words
// name, though it is not there: looking for it is no attempt that anybody sees.
func lacking(f *fleet.Fleet, r *fleet.Recipe, words string) string {
	allowed := map[string]bool{}
	for i := range r.Conditions {
		if r.Conditions[i].Service == "*" {
			return ""
		}
		for _, e := range endpoints(f, &r.Conditions[i]) {
			allowed[e.URL] = true
		}
	}
	for _, s := range f.Services {
		if s.Name == r.Service {
			continue
		}
		for _, w := range s.Pathways {
			for _, e := range w.Endpoints {
				name := e.Path
				if e.Scheme == "lib" { // loaders say its name alone
					name, _, _ = strings.Cut(path.Base(e.Path), "*")
				}
				if (e.Scheme == "unix" || e.Scheme == "lib") && !allowed[e.URL] && len(name) > 3 && strings.Contains(words, name) {
					return fmt.Sprintf("%s is of %s, and absent unless it is allowed: %s", e.Path, s.Name, allowLine(s, w.Name))
				}
			}
		}
	}
	return ""
}

// wanted returns the endpoint that a blocked attempt was for; false if none can
// name it.
func wanted(flow sandbox.Flow) (fleet.Endpoint, bool) {
	var text string
	switch {
	case flow.Protocol == "unix":
		if !strings.HasPrefix(flow.Path, "/") {
			return fleet.Endpoint{}, false
		}
		text = "unix://" + flow.Path
	case question(flow):
		text = "dns://" + strings.TrimSuffix(flow.Name, ".")
	case flow.Protocol == "http" || flow.Protocol == "https":
		e, err := fleet.ParseEndpoint(fmt.Sprintf("%s://%s%s", flow.Protocol, hostPort(flow), strings.TrimSuffix(flow.Path, "/")))
		if err != nil {
			e, err = fleet.ParseEndpoint(fmt.Sprintf("%s://%s", flow.Protocol, hostPort(flow)))
		}
		if flow.Method != "" && fleet.CheckMethod(flow.Method) == nil {
			e.Methods = []string{flow.Method}
		}
		return e, err == nil
	default:
		scheme, ok := schemeOf(flow.Protocol)
		if !ok || !flow.Destination.Addr().IsValid() {
			return fleet.Endpoint{}, false
		}
		text = literal(scheme, flow.Destination)
	}
	e, err := fleet.ParseEndpoint(text)
	return e, err == nil
}

// hostPort is where a request went, by the name that it said.
func hostPort(flow sandbox.Flow) string {
	host := flow.Name
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, flow.Destination.Port())
}

// question reports whether what was blocked is a question for a name, rather
// than what came after it.
func question(flow sandbox.Flow) bool {
	return flow.Name != "" && flow.Protocol == "dns"
}

// widerLiterals returns endpoints that hold e and more, for somebody who knows
// that it will not stay at the one: wherever its name leads, or its neighbours.
func widerLiterals(e fleet.Endpoint, name string) []string {
	if !e.Prefix.IsValid() || e.Prefix.Addr().IsLoopback() {
		return nil
	}
	var out []string
	bits := 24
	if e.Prefix.Addr().Is6() {
		bits = 64
	}
	net, err := e.Prefix.Addr().Prefix(bits)
	if err != nil {
		return nil
	}
	host := net.String()
	if net.Addr().Is6() {
		host = "[" + host + "]"
	}
	if e.Scheme == "icmp" {
		return append(out, fmt.Sprintf("allow(%q)", "icmp://"+host))
	}
	if n := strings.TrimSuffix(name, "."); n != "" {
		if named, err := fleet.ParseEndpoint(fmt.Sprintf("%s://%s:%d", e.Scheme, n, e.Ports.First)); err == nil {
			out = append(out, fmt.Sprintf("allow(%q)", named.URL))
		}
	}
	out = append(out, fmt.Sprintf("allow(%q)", fmt.Sprintf("%s://%s:%d", e.Scheme, host, e.Ports.First)))
	if len(out) > 1 {
		return out
	}
	return append(out, fmt.Sprintf("allow(%q)", fmt.Sprintf("%s://%s", e.Scheme, netip.AddrPortFrom(e.Prefix.Addr(), 1).String()+"-65535")))
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
