package gate

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"bj/sandbox"
)

// maxDecoded is how often a path is decoded to see what a server might make of it.
const maxDecoded = 4

// allowRequest returns the first of the rules that a request meets, which is
// about to be sent in this form to a port, or nil.
func allowRequest(rules []sandbox.Allow, r *http.Request, overTLS bool, port uint16) *sandbox.Allow {
	if !plainRequest(r) {
		return nil
	}
	host, ok := hostOf(r.Host, port)
	if !ok {
		return nil
	}
	for i := range rules {
		h := rules[i].HTTP
		if h.TLS != overTLS || h.Host != host || h.TLS && !h.Inspect {
			continue
		}
		if len(h.Methods) > 0 && !slices.Contains(h.Methods, r.Method) {
			continue
		}
		if h.Path != "" && !below(r.URL.RequestURI(), h.Path) {
			continue
		}
		return &rules[i]
	}
	return nil
}

// plainRequest reports whether a request is one that asks this server for
// something: no tunnel, no other server's, no other protocol.
func plainRequest(r *http.Request) bool {
	switch {
	case r.ProtoMajor != 1, r.Method == "", r.Method == http.MethodConnect, r.Method == "PRI":
		return false
	case strings.Trim(r.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "":
		return false
	case !strings.HasPrefix(r.RequestURI, "/"), strings.HasPrefix(r.RequestURI, "//"), strings.ContainsAny(r.RequestURI, "#\\"):
		return false
	case r.URL.Scheme != "" || r.URL.Host != "" || r.URL.User != nil || r.URL.Opaque != "":
		return false
	case len(r.Header.Values("Content-Length")) > 1, len(r.Header.Values("Host")) > 0:
		return false
	}
	for name := range r.Header {
		if !isToken(name) {
			return false
		}
	}
	return true
}

// isToken reports whether s is a name of a header as RFC 9110 has it.
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// hostOf returns the host of a Host header in lower case, and whether its port is
// that of the connection, or not said.
func hostOf(s string, port uint16) (string, bool) {
	s = strings.ToLower(s)
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().String(), a.Port() == port
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.String(), true
	}
	name, text, found := strings.Cut(s, ":")
	if found && text != portText(port) {
		return "", false
	}
	return plainName(name)
}

// below reports whether whatever a server may make of a request's target lies
// below a path, by whole segments.
func below(target, prefix string) bool {
	p, _, _ := strings.Cut(target, "?")
	for range maxDecoded {
		if !segmentsBelow(p, prefix) {
			return false
		}
		decoded, err := url.PathUnescape(p)
		if err != nil {
			// "100%" is what "100%25" decodes to; it says nothing more.
			return !strings.Contains(p, "%2") && !strings.Contains(p, "%5")
		}
		if decoded == p {
			return true
		}
		p = decoded
	}
	return false
}

// segmentsBelow is below for a path that is not decoded any more.
func segmentsBelow(p, prefix string) bool {
	rest, ok := strings.CutPrefix(p, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return false
	}
	if !utf8.ValidString(p) { // such as a dot in more bytes than it takes
		return false
	}
	for i, c := range []byte(p) {
		if c < ' ' || c == 0x7f || c == '\\' || c == '/' && i > 0 && p[i-1] == '/' {
			return false
		}
	}
	for segment := range strings.SplitSeq(p, "/") {
		name := segment
		if i := strings.IndexAny(name, ";?#"); i >= 0 { // some servers decode first, and then cut these off
			name = name[:i]
		}
		if name = strings.TrimSpace(name); name == "." || name == ".." || name == "" && segment != "" {
			return false
		}
	}
	return true
}

// Headers that are about one connection, or make a server take a request for
// another one.
var strippedHeaders = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Expect",
	"Proxy-Authorization", "Proxy-Authenticate", "Alt-Used", "Early-Data",
	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Original-Host",
	"X-Forwarded-Host", "X-Forwarded-Server", "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Host", "X-Http-Host-Override", "Forwarded",
}

// strip takes out what is of one connection alone. Names of Connection go too.
func strip(h http.Header) {
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range strippedHeaders {
		h.Del(name)
	}
}
