package fleet

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Schemes are the schemes of endpoints.
func Schemes() []string {
	return []string{"tcp", "udp", "icmp", "http", "https", "dns", "unix", "lib"}
}

const endpointHint = `endpoints are written like "tcp://10.0.0.1:443", "udp://[2001:db8::/32]:53", "icmp://10.0.0.1", "https://host/path", "dns://*.example.org", "unix:///run/x.sock" or "lib:///usr/lib/x.so"`

// ParseEndpoint reads an endpoint literal. The URL of what it returns is
// canonical and parses back to the same value; Methods, CA and Pos are the
// caller's to set.
func ParseEndpoint(s string) (Endpoint, error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		return Endpoint{}, wrong(endpointHint, "malformed endpoint %s", quote(s))
	}
	for _, c := range s {
		if c <= ' ' || c == 0x7f || c == '\ufffd' {
			return Endpoint{}, wrong(endpointHint, "malformed endpoint %s: blanks and control characters have no place in it", quote(s))
		}
	}
	e := Endpoint{Scheme: strings.ToLower(scheme)}
	var err error
	switch e.Scheme {
	case "tcp", "udp":
		err = e.parseSocket(s, rest)
	case "icmp":
		err = e.parseHost(s, rest)
	case "http", "https":
		err = e.parseHTTP(s, rest)
	case "dns":
		err = e.parseDNS(s, rest)
	case "unix", "lib":
		err = e.parsePath(s, rest)
	default:
		return Endpoint{}, wrong("schemes are "+strings.Join(Schemes(), ", "), "unknown scheme %s in endpoint %s", quote(scheme), quote(s))
	}
	if err != nil {
		return Endpoint{}, err
	}
	e.URL = e.format()
	return e, nil
}

// format prints the canonical text.
func (e *Endpoint) format() string {
	host := e.Host
	if e.Prefix.IsValid() {
		host = e.Prefix.String()
		if e.Prefix.IsSingleIP() {
			host = e.Prefix.Addr().String()
		}
		if e.Prefix.Addr().Is6() {
			host = "[" + host + "]"
		}
	}
	port := ""
	if e.Ports != e.defaultPorts() {
		port = ":" + e.Ports.span()
	}
	return e.Scheme + "://" + host + port + e.Path
}

// defaultPorts are the ports that need not be written.
func (e *Endpoint) defaultPorts() Ports {
	switch e.Scheme {
	case "http":
		return Ports{"tcp", 80, 80}
	case "https":
		return Ports{"tcp", 443, 443}
	}
	return Ports{}
}

func (e *Endpoint) parseSocket(s, rest string) error {
	if strings.Contains(rest, "/") {
		// 10.0.0.0/24:443 and [2001:db8::/32]:443 have the only slashes.
		before, after, _ := strings.Cut(rest, "/")
		if strings.Contains(after, "/") || !strings.HasPrefix(before, "[") && strings.Contains(before, ":") {
			return wrong("only http and https endpoints have a path", "malformed endpoint %s", quote(s))
		}
	}
	host, port, err := splitPort(s, rest)
	if err != nil {
		return err
	}
	if port == "" {
		return wrong(`add a port or a range: "`+e.Scheme+`://host:8000-8010"`, "endpoint %s has no port", quote(s))
	}
	if e.Ports.First, e.Ports.Last, err = parsePortRange(port); err != nil {
		return within(s, err)
	}
	e.Ports.Protocol = e.Scheme
	return e.parseHost(s, host)
}

func (e *Endpoint) parseHTTP(s, rest string) error {
	if strings.ContainsAny(rest, "?#") {
		return wrong("a path prefix is compared by whole segments; leave out what follows ? or #", "endpoint %s has a query or fragment", quote(s))
	}
	cut := strings.IndexByte(rest, '/')
	if strings.HasPrefix(rest, "[") {
		if end := strings.IndexByte(rest, ']'); end >= 0 {
			cut = strings.IndexByte(rest[end:], '/')
			if cut >= 0 {
				cut += end
			}
		}
	}
	authority := rest
	if cut >= 0 {
		authority, e.Path = rest[:cut], strings.TrimSuffix(rest[cut:], "/")
		// A CIDR is the one other thing that a slash may mean.
		if bits, tail, _ := strings.Cut(rest[cut+1:], "/"); isIPv4(authority) && bits != "" && isDigitsColon(bits) && tail == "" {
			return wrong(`a range of addresses has no name and no certificate: use "tcp://`+rest+`:443"`, "endpoint %s names a range of addresses", quote(s))
		}
	}
	if e.Path == "/" || e.Path != "" && path.Clean(e.Path) != e.Path {
		return wrong("write the path without empty, . and .. segments", "malformed path in endpoint %s", quote(s))
	}
	host, port, err := splitPort(s, authority)
	if err != nil {
		return err
	}
	e.Ports = e.defaultPorts()
	if port != "" {
		if e.Ports.First, e.Ports.Last, err = parsePortRange(port); err != nil {
			return within(s, err)
		}
	}
	return e.parseHost(s, host)
}

func isIPv4(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Is4()
}

func isDigitsColon(s string) bool { return strings.Trim(s, "0123456789:-") == "" }

// splitPort cuts "host:port", "[v6]:port" or "10.0.0.0/24:port"; port is empty
// where there is none.
func splitPort(s, hostport string) (host, port string, err error) {
	if strings.Contains(hostport, "@") {
		return "", "", wrong("leave out user and password", "malformed host in endpoint %s", quote(s))
	}
	if strings.HasPrefix(hostport, "[") {
		end := strings.IndexByte(hostport, ']')
		if end < 0 {
			return "", "", wrong("close the bracket", "malformed host in endpoint %s", quote(s))
		}
		host, port = hostport[:end+1], hostport[end+1:]
		if port != "" && (port[0] != ':' || port == ":") {
			return "", "", wrong(endpointHint, "malformed port in endpoint %s", quote(s))
		}
		return host, strings.TrimPrefix(port, ":"), nil
	}
	host, port, found := strings.Cut(hostport, ":")
	if strings.Contains(port, ":") {
		return "", "", wrong("put an IPv6 address in brackets: [2001:db8::1]", "malformed host in endpoint %s", quote(s))
	}
	if found && port == "" {
		return "", "", wrong("ports are 1 to 65535", "malformed port in endpoint %s", quote(s))
	}
	return host, port, nil
}

func within(s string, err error) error {
	if e, ok := err.(*SyntaxError); ok {
		return wrong(e.Hint, "%s in endpoint %s", e.Message, quote(s))
	}
	return err
}

// parseHost reads an address, a CIDR or a name into Prefix or Host.
func (e *Endpoint) parseHost(s, host string) error {
	bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
	if bracketed {
		host = host[1 : len(host)-1]
	}
	if host == "" {
		return wrong(endpointHint, "endpoint %s has no host", quote(s))
	}
	var prefix netip.Prefix
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		if err != nil {
			return wrong(`a range of addresses is written like 10.0.0.0/24 or [2001:db8::/32]`, "malformed CIDR in endpoint %s", quote(s))
		}
		if p != p.Masked() {
			return wrong("did you mean "+p.Masked().String()+"?", "the CIDR in endpoint %s has bits beyond its length", quote(s))
		}
		if e.Scheme == "http" || e.Scheme == "https" {
			return wrong("use tcp:// for a range of addresses", "endpoint %s names a range of addresses", quote(s))
		}
		prefix = p
	} else if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return wrong("leave out the zone", "malformed address in endpoint %s", quote(s))
		}
		prefix = netip.PrefixFrom(a, a.BitLen())
	}
	if !prefix.IsValid() {
		if bracketed || strings.Contains(host, ":") {
			return wrong("brackets hold IPv6 addresses", "malformed address in endpoint %s", quote(s))
		}
		name, ok := canonicalName(host)
		if !ok {
			return wrong(endpointHint, "malformed host in endpoint %s", quote(s))
		}
		e.Host = name
		return nil
	}
	a := prefix.Addr()
	switch {
	case a.Is4In6():
		return wrong("write the plain address", "malformed address in endpoint %s", quote(s))
	case a.Is6() && !bracketed:
		return wrong("put an IPv6 address in brackets: ["+prefix.String()+"]", "malformed host in endpoint %s", quote(s))
	case a.Is4() && bracketed:
		return wrong("brackets hold IPv6 addresses", "malformed address in endpoint %s", quote(s))
	case a.IsUnspecified() && prefix.IsSingleIP():
		// A kernel takes it for its own loopback: bj's, when it tries the endpoint.
		return wrong("write 0.0.0.0/0 or ::/0 for every address", "%s in endpoint %s is nobody's address", a, quote(s))
	}
	e.Prefix = prefix
	return nil
}

func (e *Endpoint) parseDNS(s, name string) error {
	pattern, rest := "", name
	if name == "*" {
		e.Host = name
		return nil
	}
	if strings.HasPrefix(name, "*.") {
		pattern, rest = "*.", name[2:]
	}
	canonical, ok := canonicalName(rest)
	if !ok {
		return wrong(`names are written like "dns://host.example.org" or "dns://*.example.org"`, "malformed name in endpoint %s", quote(s))
	}
	e.Host = pattern + canonical
	return nil
}

// canonicalName returns a DNS name in lower case without its final dot. A last
// label of digits alone is no name but a broken address.
func canonicalName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(l) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
	}
	if _, err := strconv.ParseUint(labels[len(labels)-1], 0, 64); err == nil {
		return "", false
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", false
	}
	return s, true
}

func (e *Endpoint) parsePath(s, p string) error {
	example := "unix:///run/x.sock"
	if e.Scheme == "lib" {
		example = "lib:///usr/lib/x86_64-linux-gnu/libfoo.so*"
	}
	if !strings.HasPrefix(p, "/") || path.Clean(p) != p || p == "/" {
		return wrong("the path is absolute and plain, with three slashes: "+strconv.Quote(example), "malformed path in endpoint %s", quote(s))
	}
	if e.Scheme == "unix" && len(p) > 107 {
		return wrong("the kernel takes at most 107 bytes", "the path in endpoint %s is too long for a socket", quote(s))
	}
	if e.Scheme == "lib" {
		if _, err := path.Match(p, ""); err != nil {
			return wrong("close the bracket, or write it as it is meant", "malformed pattern in endpoint %s", quote(s))
		}
	}
	e.Path = p
	return nil
}

// CheckMethod says what is wrong with an HTTP method, or nil.
func CheckMethod(m string) error {
	if m == "" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
		return wrong(`methods are written like "GET"`, "malformed method %s", quote(m))
	}
	return nil
}
