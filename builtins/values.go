package builtins

import (
	"fmt"
	"strconv"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang/diag"
)

// An at is where something was written: the parenthesis of the innermost call,
// and the calls that led there.
type at struct {
	pos   diag.Pos
	stack []diag.Frame
}

// A thing is what most builtins return: a piece of a recipe, without methods.
// Its type is the builtin's name.
type thing[T any] struct {
	kind string
	at   at
	bad  bool // had a mistake: it stands for something, but no recipe that holds it is good
	v    T
}

var _ starlark.Value = (*thing[int])(nil)

func (t *thing[T]) String() string        { return "<" + t.kind + ">" }
func (t *thing[T]) Type() string          { return t.kind }
func (t *thing[T]) Freeze()               {} // immutable
func (t *thing[T]) Truth() starlark.Bool  { return true }
func (t *thing[T]) Hash() (uint32, error) { return 0, fmt.Errorf("unhashable: %s", t.kind) }

// A serviceValue stands for a declared service.
type serviceValue struct{ name string }

func (s *serviceValue) String() string        { return s.name }
func (s *serviceValue) Type() string          { return "service" }
func (s *serviceValue) Freeze()               {}
func (s *serviceValue) Truth() starlark.Bool  { return true }
func (s *serviceValue) Hash() (uint32, error) { return starlark.String(s.name).Hash() }
func (s *serviceValue) AttrNames() []string   { return []string{"name"} }
func (s *serviceValue) Attr(name string) (starlark.Value, error) {
	if name == "name" {
		return starlark.String(s.name), nil
	}
	return nil, nil
}

// A hardwareValue is a group of machines, iterable and indexable.
type hardwareValue struct {
	at       at
	bad      bool
	hw       fleet.Hardware
	machines []*machineValue
}

var (
	_ starlark.Sliceable = (*hardwareValue)(nil)
	_ starlark.Sequence  = (*hardwareValue)(nil)
	_ starlark.HasAttrs  = (*hardwareValue)(nil)
)

func (h *hardwareValue) String() string             { return h.hw.Name }
func (h *hardwareValue) Type() string               { return "hardware" }
func (h *hardwareValue) Freeze()                    {}
func (h *hardwareValue) Truth() starlark.Bool       { return true }
func (h *hardwareValue) Hash() (uint32, error)      { return starlark.String(h.hw.Name).Hash() }
func (h *hardwareValue) Len() int                   { return len(h.machines) }
func (h *hardwareValue) Index(i int) starlark.Value { return h.machines[i] }
func (h *hardwareValue) Iterate() starlark.Iterator { return &machineIterator{h.machines} }
func (h *hardwareValue) Slice(start, end, step int) starlark.Value {
	var t starlark.Tuple
	for i := start; step > 0 && i < end || step < 0 && i > end; i += step {
		t = append(t, h.machines[i])
	}
	return t
}
func (h *hardwareValue) AttrNames() []string { return []string{"name"} }
func (h *hardwareValue) Attr(name string) (starlark.Value, error) {
	if name == "name" {
		return starlark.String(h.hw.Name), nil
	}
	if len(h.machines) > 0 {
		if v, _ := h.machines[0].Attr(name); v != nil {
			return nil, starlark.NoSuchAttrError(fmt.Sprintf("hardware has no .%s; its machines have: %s[0].%s", name, h.hw.Name, name))
		}
	}
	return nil, nil
}

type machineIterator struct{ left []*machineValue }

func (it *machineIterator) Next(p *starlark.Value) bool {
	if len(it.left) == 0 {
		return false
	}
	*p, it.left = it.left[0], it.left[1:]
	return true
}
func (it *machineIterator) Done() {}

// A machineValue is one machine of a hardwareValue.
type machineValue struct {
	hardware *hardwareValue
	m        *fleet.Machine
}

var _ starlark.HasAttrs = (*machineValue)(nil)

func (m *machineValue) String() string        { return m.m.Name }
func (m *machineValue) Type() string          { return "machine" }
func (m *machineValue) Freeze()               {}
func (m *machineValue) Truth() starlark.Bool  { return true }
func (m *machineValue) Hash() (uint32, error) { return starlark.String(m.m.Name).Hash() }
func (m *machineValue) AttrNames() []string {
	return []string{"address", "index", "name", "tcp", "udp"}
}

func (m *machineValue) Attr(name string) (starlark.Value, error) {
	switch name {
	case "name":
		return starlark.String(m.m.Name), nil
	case "index":
		return starlark.MakeInt(m.m.Index), nil
	case "address":
		return starlark.String(m.m.Address.String()), nil
	case "tcp", "udp":
		return starlark.NewBuiltin(name, m.endpoint), nil
	}
	return nil, nil
}

// endpoint makes the endpoint literal of a port, or of a range of ports, of the
// machine.
func (m *machineValue) endpoint(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var port starlark.Value
	if err := starlark.UnpackArgs(b.Name(), args, kwargs, "port", &port); err != nil {
		return nil, err
	}
	var text string
	switch p := port.(type) {
	case starlark.Int:
		text = p.String()
	case starlark.String:
		text = string(p)
	default:
		return nil, fmt.Errorf("%s: port must be a number or a range such as \"8000-8010\", not %s", b.Name(), port.Type())
	}
	ports, err := fleet.ParsePorts(text + "/" + b.Name())
	if err != nil {
		return nil, fmt.Errorf("%s: malformed port %s", b.Name(), strconv.Quote(text))
	}
	host := m.m.Address.String()
	if m.m.Address.Is6() {
		host = "[" + host + "]"
	}
	span := strconv.Itoa(int(ports.First))
	if ports.Last != ports.First {
		span += "-" + strconv.Itoa(int(ports.Last))
	}
	return starlark.String(b.Name() + "://" + host + ":" + span), nil
}
