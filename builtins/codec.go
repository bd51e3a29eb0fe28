package builtins

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"bj/fleet"
	"bj/lang/diag"
)

// A codec writes or reads facts, one field after the other, by the same code,
// so that both agree. What it reads has been checked for damage as a whole, but
// it is read with care all the same: a length is never believed beyond what is
// left. The format has no version of its own: factsVersion is part of the key
// of the cache.
type codec struct {
	file string // of most positions
	buf  []byte // when writing
	in   string // when reading: what is left
	read bool
	bad  bool
}

func (c *codec) uint(p *uint64) {
	if !c.read {
		c.buf = binary.AppendUvarint(c.buf, *p)
		return
	}
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		if c.in == "" {
			break
		}
		b := c.in[0]
		c.in = c.in[1:]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			*p = v
			return
		}
	}
	c.fail()
}

func (c *codec) fail() { c.bad, c.in = true, "" }

// number codes any whole number; negative ones take ten bytes.
func number[T ~int | ~int64 | ~uint16 | ~uint32](c *codec, p *T) {
	v := uint64(*p)
	c.uint(&v)
	if c.read {
		*p = T(v)
	}
}

func (c *codec) flag(p *bool) {
	v := uint64(0)
	if *p {
		v = 1
	}
	c.uint(&v)
	*p = v == 1
}

func text[T ~string](c *codec, p *T) {
	n := uint64(len(*p))
	c.uint(&n)
	if !c.read {
		c.buf = append(c.buf, *p...)
		return
	}
	if n > uint64(len(c.in)) {
		c.fail()
		return
	}
	*p, c.in = T(c.in[:n]), c.in[n:]
}

// list codes a slice, and tells one that is nil from one that is empty.
func list[T any](c *codec, p *[]T, f func(*codec, *T)) {
	n := uint64(0)
	if *p != nil {
		n = uint64(len(*p)) + 1
	}
	c.uint(&n)
	if c.read {
		if n == 0 {
			return
		}
		if n-1 > uint64(len(c.in)) { // each takes a byte at least
			c.fail()
			return
		}
		*p = make([]T, n-1)
	}
	for i := range *p {
		f(c, &(*p)[i])
		if c.bad {
			return
		}
	}
}

// pointer codes what may be nil.
func pointer[T any](c *codec, p **T, f func(*codec, *T)) {
	there := *p != nil
	c.flag(&there)
	if !there {
		return
	}
	if c.read {
		*p = new(T)
	}
	f(c, *p)
}

func names(c *codec, p *[]string) { list(c, p, text[string]) }

func (c *codec) pos(p *diag.Pos) {
	same := p.File == c.file
	c.flag(&same)
	if same {
		p.File = c.file
	} else {
		text(c, &p.File)
	}
	number(c, &p.Line)
	number(c, &p.Col)
}

func (c *codec) stack(p *[]diag.Frame) {
	list(c, p, func(c *codec, f *diag.Frame) {
		c.pos(&f.Pos)
		text(c, &f.Func)
	})
}

func (c *codec) addr(p *netip.Addr) {
	var s string
	if !c.read {
		b, _ := p.MarshalBinary() // never fails
		s = string(b)
	}
	text(c, &s)
	if c.read && p.UnmarshalBinary([]byte(s)) != nil {
		c.fail()
	}
}

func (c *codec) prefix(p *netip.Prefix) {
	there := p.IsValid()
	c.flag(&there)
	if !there {
		return
	}
	addr, bits := p.Addr(), p.Bits()
	c.addr(&addr)
	number(c, &bits)
	if c.read {
		*p = netip.PrefixFrom(addr, bits)
	}
}

func facter(c *codec, f *facts) {
	list(c, &f.services, pointerTo(service_))
	list(c, &f.recipes, pointerTo(recipe_))
}

func pointerTo[T any](f func(*codec, *T)) func(*codec, **T) {
	return func(c *codec, p **T) {
		if c.read {
			*p = new(T)
		}
		f(c, *p)
	}
}

func service_(c *codec, s *fleet.Service) {
	text(c, &s.Name)
	text(c, &s.Owner)
	text(c, &s.Doc)
	text(c, &s.FileDoc)
	text(c, &s.Kind)
	text(c, &s.Package)
	list(c, &s.Listens, ports_)
	list(c, &s.Pathways, func(c *codec, p *fleet.Pathway) {
		text(c, &p.Name)
		list(c, &p.Endpoints, endpoint_)
	})
	c.pos(&s.Pos)
	c.stack(&s.Stack)
	names(c, &s.Modules)
}

func ports_(c *codec, p *fleet.Ports) {
	text(c, &p.Protocol)
	number(c, &p.First)
	number(c, &p.Last)
}

func endpoint_(c *codec, e *fleet.Endpoint) {
	text(c, &e.URL)
	text(c, &e.Scheme)
	text(c, &e.Host)
	c.prefix(&e.Prefix)
	ports_(c, &e.Ports)
	text(c, &e.Path)
	names(c, &e.Methods)
	text(c, &e.CA)
	c.pos(&e.Pos)
}

func recipe_(c *codec, r *fleet.Recipe) {
	text(c, &r.Label)
	text(c, &r.Package)
	text(c, &r.Name)
	text(c, &r.Service)
	text(c, &r.Doc)
	text(c, &r.FileDoc)
	names(c, &r.Restores)
	list(c, &r.Hardware, pointerTo(hardware_))
	list(c, &r.Tools, tool_)
	list(c, &r.Files, file_)
	list(c, &r.Secrets, secret_)
	list(c, &r.Conditions, condition_)
	list(c, &r.Strategy, func(c *codec, a *fleet.Action) {
		pointer(c, &a.Step, step_)
		pointer(c, &a.Validation, validation_)
		pointer(c, &a.Fault, fault_)
	})
	list(c, &r.Validation, pointerTo(validation_))
	names(c, &r.Tags)
	number(c, &r.Within)
	pointer(c, &r.Estimate, number[time.Duration])
	c.pos(&r.Pos)
	c.stack(&r.Stack)
	names(c, &r.Modules)
}

func hardware_(c *codec, h *fleet.Hardware) {
	text(c, &h.Name)
	number(c, &h.CPUs)
	number(c, &h.Memory)
	number(c, &h.Disk)
	pointer(c, &h.Image, image_)
	text(c, &h.Doc)
	list(c, &h.Machines, func(c *codec, m *fleet.Machine) {
		text(c, &m.Name)
		number(c, &m.Index)
		c.addr(&m.Address)
		c.addr(&m.V4)
		c.addr(&m.V6)
		c.flag(&m.Declared)
	})
	c.pos(&h.Pos)
}

func image_(c *codec, i *fleet.Image) {
	text(c, &i.Name)
	names(c, &i.Debian)
	text(c, &i.OCI)
	text(c, &i.Disk)
	c.flag(&i.Host)
	text(c, &i.Suite)
	text(c, &i.Kernel)
	c.flag(&i.Systemd)
	c.pos(&i.Pos)
}

func tool_(c *codec, t *fleet.Tool) {
	text(c, &t.Name)
	text(c, &t.Path)
	text(c, &t.Go)
	text(c, &t.Deb)
	text(c, &t.URL)
	text(c, &t.SHA256)
	text(c, &t.Target)
	pointer(c, &t.Kept, func(c *codec, k *fleet.Kept) {
		text(c, &k.Text)
		pointer(c, &k.Allow, condition_)
	})
	text(c, &t.Doc)
	c.pos(&t.Pos)
}

func file_(c *codec, f *fleet.File) {
	text(c, &f.Path)
	text(c, &f.Content)
	text(c, &f.Source)
	number(c, &f.Mode)
	names(c, &f.On)
	c.pos(&f.Pos)
}

func secret_(c *codec, s *fleet.Secret) {
	text(c, &s.Name)
	text(c, &s.Value)
	text(c, &s.Source)
	text(c, &s.Where)
	c.pos(&s.Pos)
}

func condition_(c *codec, k *fleet.Condition) {
	text(c, &k.Service)
	names(c, &k.Pathways)
	pointer(c, &k.Endpoint, endpoint_)
	names(c, &k.Only)
	names(c, &k.On)
	text(c, &k.Why)
	number(c, &k.Effort)
	text(c, &k.Text)
	c.pos(&k.Pos)
	c.stack(&k.Stack)
}

// scripts codes what runs on the machines of on; one text for all is written
// once.
func (c *codec) scripts(p *[]fleet.Script) {
	last := ""
	list(c, p, func(c *codec, s *fleet.Script) {
		text(c, &s.Machine)
		same := s.Text == last
		c.flag(&same)
		if same {
			s.Text = last
		} else {
			text(c, &s.Text)
		}
		last = s.Text
	})
}

func step_(c *codec, s *fleet.Step) {
	text(c, &s.Title)
	names(c, &s.On)
	c.scripts(&s.Run)
	text(c, &s.Doc)
	number(c, &s.Within)
	c.flag(&s.Daemon)
	c.flag(&s.Restart)
	text(c, &s.Unit)
	text(c, &s.User)
	c.env(&s.Env)
	text(c, &s.Expect)
	text(c, &s.Capture)
	c.flag(&s.Masked)
	number(c, &s.Retry)
	text(c, &s.IfFails)
	text(c, &s.Danger)
	c.pos(&s.Pos)
}

func (c *codec) env(p *map[string]string) {
	keys := slices.Sorted(maps.Keys(*p))
	if *p == nil {
		keys = nil
	} else if keys == nil {
		keys = []string{}
	}
	names(c, &keys)
	if c.read && keys != nil {
		*p = make(map[string]string, len(keys))
	}
	for _, k := range keys {
		v := (*p)[k]
		text(c, &v)
		(*p)[k] = v
	}
}

func validation_(c *codec, v *fleet.Validation) {
	text(c, &v.Title)
	names(c, &v.On)
	c.scripts(&v.Run)
	text(c, &v.Expect)
	number(c, &v.Exit)
	number(c, &v.Within)
	number(c, &v.Every)
	number(c, &v.Steady)
	number(c, &v.AtLeast)
	c.flag(&v.Invariant)
	text(c, &v.Doc)
	c.pos(&v.Pos)
}

func fault_(c *codec, f *fleet.Fault) {
	text(c, &f.Title)
	names(c, &f.On)
	text(c, &f.Kill)
	c.flag(&f.Crash)
	text(c, &f.Dark)
	c.pos(&f.Pos)
}
