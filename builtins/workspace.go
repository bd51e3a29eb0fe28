package builtins

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"golang.org/x/mod/semver"

	"bj/fleet"
	"bj/lang"
)

func workspace(c *call) starlark.Value {
	w := &fleet.Workspace{Pos: c.start()}
	if c.state.settings != nil {
		c.errorAt(lang.Arg{Index: -1}, "duplicate", "", "workspace is called twice")
		return starlark.None
	}
	if w.Name = c.required("name"); w.Name != "" {
		if err := fleet.CheckName("workspace", w.Name); err != nil {
			c.syntaxError("name", nil, "name", err)
		}
	}
	if w.Version = c.required("bj"); w.Version != "" {
		if _, err := satisfies("v0", w.Version); err != nil {
			c.errorf("bj", nil, "version", `versions are written like ">=0.3"`, "%s", err)
		}
	}
	w.Sandbox = c.choice("sandbox", "namespace", "libvirt")
	w.Supply = c.choice("supply", "production", "recipes")
	w.Image = c.image("image")
	for i, v := range c.list("waivers", "a list of dicts") {
		if x, ok := c.waiver(i, v); ok {
			w.Waivers = append(w.Waivers, x)
		}
	}
	w.Known = c.strings("known")
	for i, k := range w.Known {
		p, err := c.resolvePath(k)
		if err != nil || k == "" {
			c.errorf("known", []any{i}, "path", "paths are relative to the workspace, or absolute", "malformed path %q", k)
		}
		w.Known[i] = p
	}
	c.state.settings = w
	return starlark.None
}

func (c *call) choice(name string, choices ...string) string {
	s := c.required(name)
	if s != "" && !contains(choices, s) {
		c.errorf(name, nil, name, lang.DidYouMean(s, choices, "choose "+orList(choices)), "unknown %s %q", name, s)
	}
	return s
}

// waiver reads {"services": [...], "owner": ..., "reason": ..., "expires": ...},
// or a struct of the same.
func (c *call) waiver(i int, v starlark.Value) (fleet.Waiver, bool) {
	w := fleet.Waiver{Pos: c.start()}
	fields := map[string]starlark.Value{}
	switch v := v.(type) {
	case *starlark.Dict:
		for k, x := range v.Entries() {
			key, _ := k.(starlark.String)
			fields[string(key)] = x
		}
	case *starlarkstruct.Struct:
		for _, n := range v.AttrNames() {
			fields[n], _ = v.Attr(n)
		}
	default:
		c.wrongType("waivers", []any{i}, v, "a dict with services, owner, reason and expires")
		return w, false
	}
	names := []string{"services", "owner", "reason", "expires"}
	ok := true
	bad := func(path []any, format string, args ...any) {
		ok = false
		c.errorf("waivers", path, "waiver", `write {"services": ["a", "b"], "owner": "x", "reason": "y", "expires": "2030-01-31"}`, format, args...)
	}
	for k := range fields {
		if !contains(names, k) {
			ok = false
			c.errorf("waivers", []any{i}, "unknown-argument", lang.DidYouMean(k, names, "a waiver has "+strings.Join(names, ", ")), "a waiver has no %s", k)
		}
	}
	for name, p := range map[string]*string{"owner": &w.Owner, "reason": &w.Reason, "expires": &w.Expires} {
		s, isString := fields[name].(starlark.String)
		if !isString || s == "" {
			bad([]any{i}, "a waiver needs %s", name)
		}
		*p = string(s)
	}
	if _, err := time.Parse(time.DateOnly, w.Expires); err != nil && w.Expires != "" {
		bad([]any{i, "expires"}, "malformed date %q", w.Expires)
	}
	if fields["services"] == nil {
		bad([]any{i}, "a waiver needs services")
		return w, false
	}
	for j, s := range c.elements("waivers", []any{i, "services"}, fields["services"], "a list of services") {
		switch s := s.(type) {
		case starlark.String:
			w.Services = append(w.Services, string(s))
		default:
			c.wrongType("waivers", []any{i, "services", j}, s, "a string")
			ok = false
		}
	}
	if len(w.Services) == 0 {
		bad([]any{i}, "a waiver names at least one service")
	}
	return w, ok
}

var constraint = regexp.MustCompile(`^(>=|<=|==|=|>|<)\s*v?([0-9]+(?:\.[0-9]+){0,2}(?:-[0-9A-Za-z.-]+)?)$`)

// satisfies reports whether a version, such as v0.3.1, meets every one of the
// constraints, such as ">=0.3, <1".
func satisfies(version, constraints string) (bool, error) {
	met := true
	for part := range strings.SplitSeq(constraints, ",") {
		m := constraint.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil || !semver.IsValid("v"+m[2]) {
			return false, fmt.Errorf("malformed version %q", constraints)
		}
		d := semver.Compare(version, "v"+m[2])
		switch m[1] {
		case ">=":
			met = met && d >= 0
		case "<=":
			met = met && d <= 0
		case ">":
			met = met && d > 0
		case "<":
			met = met && d < 0
		default:
			met = met && d == 0
		}
	}
	return met, nil
}

// canonicalVersion returns bj's own version for comparison, or "" for one that
// was built from no release and so meets everything.
func canonicalVersion(v string) string {
	if !strings.HasPrefix(v, "v") {
		v = "v" + v
	}
	if !semver.IsValid(v) || strings.HasPrefix(v, "v0.0.0-") || v == "v0.0.0" {
		return ""
	}
	return v
}

// wantsVersion finds the constraint in the text of bj.star, which a later bj
// may be able to read and this one not.
var wantsVersion = regexp.MustCompile(`(?m)^[^#\n]*\bbj\s*=\s*["']([^"'\n]*)["']`)
