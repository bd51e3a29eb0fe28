package builtins

import (
	"go.starlark.net/lib/math"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"bj/lang"
)

// vocabulary is every builtin of package files with its parameters.
func vocabulary() []vocable {
	return []vocable{
		{"service", `name, owner, doc="", kind="service", listens=[], endpoints={}`, service},
		{"recipe", `name, service, hardware, strategy, validation, tooling=[], conditions=[], restores=None, doc="", tags=[], within="10m", estimate=None`, recipe},
		{"hardware", `name, count=1, cpus=1, memory="256MiB", disk="1GiB", image=None, addresses=[], doc=""`, hardware},
		{"image", `name, debian=[], oci=None, disk=None, host=False, suite=None, kernel=None, systemd=False`, image},
		{"tool", `name, path=None, go=None, deb=None, url=None, sha256=None, target=None, kept=None, doc=""`, tool},
		{"file", `path, content=None, source=None, mode="0644", on=None`, file},
		{"secret", `name, test, where`, secret},
		{"allow", `what, *pathways, only=None, on=None, why="", effort=1`, allow},
		{"endpoint", `url, methods=[], ca=None`, endpoint},
		{"step", `title, run=None, on=None, doc="", within="5m", daemon=False, restart=False, unit=None, user="root", env={}, expect=None, capture=None, masked=False, retry=0, if_fails="", danger=""`, step},
		{"validate", `title, run, on=None, expect=None, exit=0, within="30s", every="1s", steady="0s", at_least=None, invariant=False, doc=""`, validate},
		{"fault", `title, on=None, kill=None, crash=False, dark=None`, fault},
		{"workspace", `name=None, bj=None, sandbox=None, supply=None, image=None, waivers=[], known=[]`, workspace},
	}
}

type vocable struct {
	name, params string
	f            func(*call) starlark.Value
}

// inSettings reports whether a builtin belongs in bj.star, and inPackages
// whether it belongs in package files.
func (v vocable) inSettings() bool { return v.name == "workspace" || v.name == "image" }
func (v vocable) inPackages() bool { return v.name != "workspace" }

// A Builtin is one builtin of the recipe language, for references and editors.
type Builtin struct {
	Name   string
	Params []Param
	Rest   string // of the further positional arguments; "" if it takes none
}

// A Param is one parameter of a Builtin.
type Param struct {
	Name     string
	Required bool
	Default  string // as written
}

// Reference returns the builtins in the order of the language's contract.
func Reference() []Builtin {
	var out []Builtin
	for _, v := range vocabulary() {
		sig := sign(v.name, v.params)
		b := Builtin{Name: sig.name, Rest: sig.rest}
		for _, p := range sig.params {
			b.Params = append(b.Params, Param{p.name, p.required, p.dflt})
		}
		out = append(out, b)
	}
	return out
}

// environments returns what package files and bj.star see.
func environments() (packages, settings starlark.StringDict) {
	packages = starlark.StringDict{
		"json":   lang.JSON(),
		"math":   math.Module,
		"struct": starlark.NewBuiltin("struct", starlarkstruct.Make),
	}
	settings = starlark.StringDict{}
	for name, v := range packages {
		settings[name] = v
	}
	for _, v := range vocabulary() {
		sig := sign(v.name, v.params)
		here, elsewhere := builtin(sig, v.f), misplaced(v)
		packages[v.name], settings[v.name] = here, here
		if !v.inPackages() {
			packages[v.name] = elsewhere
		}
		if !v.inSettings() {
			settings[v.name] = elsewhere
		}
	}
	return packages, settings
}

// misplaced is a builtin that belongs in another file.
func misplaced(v vocable) *starlark.Builtin {
	err := &lang.CodedError{Rule: "misplaced", Message: v.name + " does not belong in bj.star", Hint: "bj.star holds workspace(...) alone; declare recipes in other files"}
	if !v.inPackages() {
		err = &lang.CodedError{Rule: "misplaced", Message: v.name + " belongs in bj.star", Hint: "settings of the whole tree stand in bj.star at its root"}
	}
	return starlark.NewBuiltin(v.name, func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error) {
		return nil, err
	})
}
