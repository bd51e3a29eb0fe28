package builtins

import (
	"fmt"
	"strings"

	"go.starlark.net/starlark"

	"bj/fleet"
	"bj/lang"
)

func service(c *call) starlark.Value {
	s := &fleet.Service{
		Name:    c.required("name"),
		Owner:   c.required("owner"),
		Doc:     strings.TrimSpace(c.str("doc")),
		Kind:    fleet.KindService,
		Package: c.state.module.Package,
	}
	s.Pos, s.Stack = c.declared()
	if s.Name != "" {
		if err := fleet.CheckServiceName(s.Name); err != nil {
			c.syntaxError("name", nil, "name", err)
		}
	}
	if kind := c.str("kind"); kind != "" {
		s.Kind = fleet.Kind(kind)
		kinds := []string{string(fleet.KindService), string(fleet.KindLibrary), string(fleet.KindSidecar), string(fleet.KindTool)}
		if !contains(kinds, kind) {
			c.errorf("kind", nil, "kind", lang.DidYouMean(kind, kinds, "kinds are "+strings.Join(kinds, ", ")), "unknown kind %q", kind)
		}
	}
	for i, v := range c.list("listens", "a list of ports") {
		if p, ok := c.ports("listens", []any{i}, v); ok {
			s.Listens = append(s.Listens, p)
		}
	}
	s.Pathways = c.pathways("endpoints")
	if len(s.Pathways) == 0 {
		s.Pathways = []fleet.Pathway{{Name: "default"}}
	}
	if c.bad {
		if s.Name != "" {
			c.state.phantoms = append(c.state.phantoms, s.Name)
		}
	} else {
		c.state.services = append(c.state.services, s)
	}
	return &serviceValue{s.Name}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (c *call) ports(name string, path []any, v starlark.Value) (fleet.Ports, bool) {
	text := ""
	switch v := v.(type) {
	case starlark.Int:
		text = v.String()
	case starlark.String:
		text = string(v)
	default:
		c.wrongType(name, path, v, `a port such as 2181, "53/udp" or "8000-8010"`)
		return fleet.Ports{}, false
	}
	p, err := fleet.ParsePorts(text)
	if err != nil {
		c.syntaxError(name, path, "port", err)
	}
	return p, err == nil
}

// pathways reads a dict from names to lists of endpoints.
func (c *call) pathways(name string) []fleet.Pathway {
	v := c.args[c.arg(name)]
	if v == nil {
		return nil
	}
	d, ok := v.(*starlark.Dict)
	if !ok {
		c.wrongType(name, nil, v, "a dict from pathways to lists of endpoints")
		return nil
	}
	var out []fleet.Pathway
	for _, item := range d.Items() {
		key, ok := item[0].(starlark.String)
		if !ok {
			c.wrongType(name, nil, item[0], "a dict from names to lists of endpoints")
			continue
		}
		if err := fleet.CheckName("pathway", string(key)); err != nil {
			c.syntaxError(name, []any{string(key)}, "name", err)
		}
		p := fleet.Pathway{Name: string(key)}
		for i, e := range c.elements(name, []any{string(key)}, item[1], "a list of endpoints") {
			if ep, ok := c.endpoint(name, []any{string(key), i}, e); ok {
				p.Endpoints = append(p.Endpoints, ep)
			}
		}
		out = append(out, p)
	}
	return out
}

// endpoint reads an endpoint or its literal.
func (c *call) endpoint(name string, path []any, v starlark.Value) (fleet.Endpoint, bool) {
	switch v := v.(type) {
	case *thing[fleet.Endpoint]:
		c.bad = c.bad || v.bad
		return v.v, !v.bad
	case starlark.String:
		e, err := fleet.ParseEndpoint(string(v))
		if err != nil {
			c.syntaxError(name, path, "endpoint", err)
			return e, false
		}
		e.Pos = c.start()
		return e, true
	}
	c.wrongType(name, path, v, "an endpoint or its text")
	return fleet.Endpoint{}, false
}

func endpoint(c *call) starlark.Value {
	t := &thing[fleet.Endpoint]{kind: "endpoint", at: c.place()}
	url := c.required("url")
	methods, ca := c.strings("methods"), c.str("ca")
	if url != "" {
		e, err := fleet.ParseEndpoint(url)
		if err != nil {
			c.syntaxError("url", nil, "endpoint", err)
		}
		t.v = e
	}
	t.v.Pos, t.v.CA = c.start(), ca
	http := t.v.Scheme == "http" || t.v.Scheme == "https"
	for i, m := range methods {
		if err := fleet.CheckMethod(m); err != nil {
			c.syntaxError("methods", []any{i}, "method", err)
		}
		t.v.Methods = append(t.v.Methods, m)
	}
	if len(methods) > 0 && !http && t.v.Scheme != "" {
		c.errorf("methods", nil, "argument", "leave methods out, or use http:// or https://", "%s endpoints have no methods", t.v.Scheme)
	}
	if ca != "" && t.v.Scheme != "https" && t.v.Scheme != "" {
		c.errorf("ca", nil, "argument", "leave ca out, or use https://", "%s endpoints have no ca", t.v.Scheme)
	}
	t.bad = c.bad
	return t
}

// allow makes one recovery condition. Whether the service and its pathways
// exist is known when all files have been read.
func allow(c *call) starlark.Value {
	t := &thing[fleet.Condition]{kind: "allow", at: c.place()}
	cond := &t.v
	cond.Pos, cond.Stack = c.start(), c.stack
	var words []string
	switch what := c.args[c.arg("what")].(type) {
	case nil:
	case *serviceValue:
		cond.Service = what.name
		words = append(words, fmt.Sprintf("%q", what.name))
	case *thing[fleet.Endpoint]:
		e := what.v
		cond.Endpoint = &e
		c.bad = c.bad || what.bad
		words = append(words, fmt.Sprintf("%q", e.URL))
	case starlark.String:
		text := string(what)
		words = append(words, fmt.Sprintf("%q", text))
		switch {
		case text == "*":
			cond.Service = text
		case strings.Contains(text, "://"):
			if e, ok := c.endpoint("what", nil, what); ok {
				cond.Endpoint = &e
			}
		default:
			cond.Service = text
			if err := fleet.CheckServiceName(text); err != nil {
				c.syntaxError("what", nil, "name", err)
			}
		}
	default:
		c.wrongType("what", nil, what, "a service, its name or an endpoint")
	}
	for i, v := range c.rest {
		arg := lang.Arg{Index: i + 1}
		p, ok := v.(starlark.String)
		switch {
		case !ok:
			c.errorAt(arg, "wrong-type", "", "a pathway must be a string, not %s", typeName(v))
			continue
		case p != "*":
			if err := fleet.CheckName("pathway", string(p)); err != nil {
				c.errorAt(arg, "name", err.(*fleet.SyntaxError).Hint, "%s", err)
			}
		case len(c.rest) > 1:
			c.errorAt(arg, "argument", `name some pathways, or "*" alone for all`, `"*" stands beside other pathways`)
		}
		if contains(cond.Pathways, string(p)) {
			c.errorAt(arg, "duplicate", "", "pathway %q is named twice", string(p))
		}
		if cond.Endpoint != nil || cond.Service == "*" {
			c.errorAt(arg, "argument", "", "%s has no pathways", map[bool]string{true: "an endpoint", false: `allow("*")`}[cond.Endpoint != nil])
		}
		cond.Pathways = append(cond.Pathways, string(p))
		words = append(words, fmt.Sprintf("%q", string(p)))
	}
	cond.Only = c.units("only")
	cond.On = machineNames(c.machines("on"))
	cond.Why = strings.TrimSpace(c.str("why"))
	cond.Effort = c.integer("effort", 1, 1, 1_000_000)
	cond.Text = "allow(" + strings.Join(words, ", ") + ")"
	t.bad = c.bad
	return t
}

// units reads a unit's name or a list of them.
func (c *call) units(name string) []string {
	i := c.arg(name)
	if s, ok := c.args[i].(starlark.String); ok {
		c.args[i] = starlark.Tuple{s}
	}
	c.cursor = i
	units := c.strings(name)
	for i, u := range units {
		if err := fleet.CheckName("unit", u); err != nil {
			c.syntaxError(name, []any{i}, "name", err)
		}
	}
	if c.args[i] != nil && len(units) == 0 && !c.bad {
		c.errorf(name, nil, "empty", "leave it out to mean all", "%s of %s is empty", name, c.sig.name)
	}
	return units
}
