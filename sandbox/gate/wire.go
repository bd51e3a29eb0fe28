package gate

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// maxMessage is the largest DNS message that the gate sends or takes by UDP from
// a machine, in bytes: what every program takes without being asked.
const maxMessage = 512

// maxReply is the largest that it takes from a server by UDP.
const maxReply = 1232

// maxChain bounds the aliases that an answer may lead through.
const maxChain = 8

// question is all that is taken from a machine's message.
type question struct {
	id   uint16
	name string // lower case, without the final dot
	kind uint16 // the record type
}

// What a machine may ask for; everything else could carry text.
const (
	kindA    = dns.TypeA
	kindAAAA = dns.TypeAAAA
)

// reply is all that is taken from a server's message.
type reply struct {
	code  int // 0 found or empty, 2 the server failed, 3 no such name, 5 refused
	addrs []netip.Addr
	ttl   uint32 // seconds
	cut   bool   // the server had more to say than fitted
}

// Codes of replies.
const (
	codeOK      = dns.RcodeSuccess
	codeFailed  = dns.RcodeServerFailure
	codeNoName  = dns.RcodeNameError
	codeRefused = dns.RcodeRefused
)

// wire reads and writes DNS messages. Nothing but what question and reply hold
// passes from one side to the other.
type wire interface {
	// readQuestion reads a machine's message: one plain question.
	readQuestion(b []byte) (question, error)
	// ask writes a question to a server.
	ask(q question) ([]byte, error)
	// readReply reads the reply of a server to q.
	readReply(q question, b []byte) (reply, error)
	// answer writes the answer to a machine, of at most maxMessage bytes.
	answer(q question, r reply) ([]byte, error)
}

// library is wire by miekg/dns.
type library struct{}

var errNotPlain = errors.New("not one plain question")

func (library) readQuestion(b []byte) (question, error) {
	if len(b) > maxMessage {
		return question{}, errNotPlain
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		return question{}, err
	}
	// A cookie or padding in the additional section is dropped with all of it.
	if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || len(m.Answer) != 0 || len(m.Ns) != 0 {
		return question{}, errNotPlain
	}
	q := m.Question[0]
	name, ok := plainName(q.Name)
	if !ok || q.Qclass != dns.ClassINET {
		return question{}, errNotPlain
	}
	return question{id: m.Id, name: name, kind: q.Qtype}, nil
}

// plainName returns a name as text in lower case without its final dot, and
// whether it is one that a host or service may have.
func plainName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
	}
	return s, true
}

func (library) ask(q question) ([]byte, error) {
	var m dns.Msg
	m.Id = q.id
	m.RecursionDesired = true
	m.Question = []dns.Question{{Name: q.name + ".", Qtype: q.kind, Qclass: dns.ClassINET}}
	m.SetEdns0(maxReply, false)
	return m.Pack()
}

func (library) readReply(q question, b []byte) (reply, error) {
	var m dns.Msg
	// A cut message is read as far as it goes.
	if err := m.Unpack(b); err != nil && !m.Truncated {
		return reply{}, err
	}
	if !m.Response || m.Id != q.id || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return reply{}, errors.New("not the reply to what was asked")
	}
	if n, ok := plainName(m.Question[0].Name); !ok || n != q.name || m.Question[0].Qtype != q.kind || m.Question[0].Qclass != dns.ClassINET {
		return reply{}, errors.New("the reply to another question")
	}
	r := reply{code: m.Rcode, cut: m.Truncated, ttl: maxTTL}
	switch r.code {
	case codeOK:
	case codeNoName:
		return r, nil
	default:
		return reply{code: codeFailed, cut: m.Truncated}, nil
	}
	// Only what the name leads to counts, through its aliases.
	at := q.name
	for range maxChain {
		next := ""
		for _, rr := range m.Answer {
			owner, ok := plainName(rr.Header().Name)
			if !ok || owner != at || rr.Header().Class != dns.ClassINET {
				continue
			}
			var a netip.Addr
			switch rr := rr.(type) {
			case *dns.A:
				if q.kind == kindA {
					a, _ = netip.AddrFromSlice(rr.A.To4())
				}
			case *dns.AAAA:
				if q.kind == kindAAAA {
					a, _ = netip.AddrFromSlice(rr.AAAA.To16())
				}
			case *dns.CNAME:
				next, _ = plainName(rr.Target)
				r.ttl = min(r.ttl, rr.Hdr.Ttl)
			}
			if a.IsValid() && !a.Is4In6() && len(r.addrs) < maxAddrs {
				r.addrs = append(r.addrs, a)
				r.ttl = min(r.ttl, rr.Header().Ttl)
			}
		}
		if next == "" || len(r.addrs) > 0 {
			break
		}
		at = next
	}
	return r, nil
}

const (
	maxTTL   = 60 // seconds: no machine keeps an answer for long
	maxAddrs = 12 // of one answer, so that it fits with the longest name
)

func (library) answer(q question, r reply) ([]byte, error) {
	var m dns.Msg
	m.Id = q.id
	m.Response, m.RecursionDesired, m.RecursionAvailable = true, true, true
	m.Rcode = r.code
	m.Compress = true
	name := q.name + "."
	m.Question = []dns.Question{{Name: name, Qtype: q.kind, Qclass: dns.ClassINET}}
	for _, a := range r.addrs {
		h := dns.RR_Header{Name: name, Rrtype: q.kind, Class: dns.ClassINET, Ttl: r.ttl}
		if q.kind == kindA {
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	for {
		b, err := m.Pack()
		if err != nil || len(b) <= maxMessage || len(m.Answer) == 0 {
			return b, err
		}
		m.Answer = m.Answer[:len(m.Answer)-1]
	}
}
