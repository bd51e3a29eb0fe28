// Package fleet is the vocabulary of bj as plain values: what a workspace's
// recipes declare, after evaluation and before anything runs.
//
//	Fleet      everything that is declared, sorted
//	Service    a node of the recovery graph, and a capability for others
//	Pathway    a named subset of a service: a cluster, a read-only path
//	Endpoint   one thing that can be reached, or denied
//	Recipe     one recovery scenario of one service
//	Hardware   the machines that a recipe asks for
//	Tool, File, Secret   what is put there before the seal closes
//	Condition  one thing that may be healthy
//	Action     a step, a validation between steps, or a fault
//
// Values are immutable once a Fleet has been built, carry the place where they
// were written, and survive encoding: scripts that a recipe computes for each
// machine are computed while loading. Lists keep the order of the source.
package fleet

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"bj/lang/diag"
)

// Fleet is all that a workspace declares.
type Fleet struct {
	Workspace Workspace  `json:"workspace"`
	Services  []*Service `json:"services"` // sorted by name
	Recipes   []*Recipe  `json:"recipes"`  // sorted by label
}

// Service returns the service of that name, or nil.
func (f *Fleet) Service(name string) *Service {
	i, ok := slices.BinarySearchFunc(f.Services, name, func(s *Service, n string) int { return strings.Compare(s.Name, n) })
	if !ok {
		return nil
	}
	return f.Services[i]
}

// Recipe returns the recipe of that label (//package:name), or nil.
func (f *Fleet) Recipe(label string) *Recipe {
	i, ok := slices.BinarySearchFunc(f.Recipes, label, func(r *Recipe, l string) int { return strings.Compare(r.Label, l) })
	if !ok {
		return nil
	}
	return f.Recipes[i]
}

// With returns a fleet in which r takes the place of the recipe of its label. It
// shares all else with f.
func (f *Fleet) With(r *Recipe) *Fleet {
	g := *f
	g.Recipes = slices.Clone(f.Recipes)
	i, found := slices.BinarySearchFunc(g.Recipes, r.Label, func(x *Recipe, l string) int { return strings.Compare(x.Label, l) })
	if found {
		g.Recipes[i] = r
	} else {
		g.Recipes = slices.Insert(g.Recipes, i, r)
	}
	return &g
}

// Workspace is what bj.star says about the whole tree; zero fields mean the default.
type Workspace struct {
	Name    string   `json:"name"`
	Version string   `json:"bj,omitempty"` // constraint on bj's version, such as ">=0.3"
	Sandbox string   `json:"sandbox,omitempty"`
	Supply  string   `json:"supply,omitempty"`
	Image   *Image   `json:"image,omitempty"`
	Waivers []Waiver `json:"waivers,omitempty"`
	Known   []string `json:"known,omitempty"` // files with graphs of other repositories
	Pos     diag.Pos `json:"pos"`
}

// Waiver names a known cycle by its members.
type Waiver struct {
	Services []string `json:"services"`
	Owner    string   `json:"owner"`
	Reason   string   `json:"reason"`
	Expires  string   `json:"expires"` // YYYY-MM-DD
	Pos      diag.Pos `json:"pos"`
}

// Kind says what a service is.
type Kind string

const (
	KindService Kind = "service"
	KindLibrary Kind = "library"
	KindSidecar Kind = "sidecar"
	KindTool    Kind = "tool"
)

// Service is a node of the recovery graph and, for others, a capability that
// they can allow.
type Service struct {
	Name     string    `json:"name"`
	Owner    string    `json:"owner"`
	Doc      string    `json:"doc,omitempty"`
	FileDoc  string    `json:"file_doc,omitempty"` // docstring of the file that declares it
	Kind     Kind      `json:"kind"`
	Package  string    `json:"package"`
	Listens  []Ports   `json:"listens"`
	Pathways []Pathway `json:"pathways"` // in order; a service without endpoints has the one pathway "default"
	// Known is the file of the saved graph that declares it, where another
	// repository does; empty for a service of this workspace. It has no
	// endpoints here.
	Known string   `json:"known,omitempty"`
	Pos   diag.Pos `json:"pos"`
	// Stack is the way from Pos, at the top level of its module, through macros
	// to the declaration itself; empty where there is no macro.
	Stack []diag.Frame `json:"stack,omitempty"`
	// Modules are as for a Recipe; none for a service of another repository.
	Modules []string `json:"modules,omitempty"`
}

// Pathway returns the pathway of that name, or nil.
func (s *Service) Pathway(name string) *Pathway {
	for i := range s.Pathways {
		if s.Pathways[i].Name == name {
			return &s.Pathways[i]
		}
	}
	return nil
}

// Pathway is a named subset of a service's endpoints.
type Pathway struct {
	Name      string     `json:"name"`
	Endpoints []Endpoint `json:"endpoints"`
}

// Ports is a range of ports of one protocol, both ends included.
type Ports struct {
	Protocol string `json:"protocol"` // "tcp" or "udp"
	First    uint16 `json:"first"`
	Last     uint16 `json:"last"`
}

// Endpoint is one thing that can be reached: an address and port, a name, a
// path, a socket or a library. URL is the canonical text, and parses back to
// the same value.
type Endpoint struct {
	URL     string       `json:"url"`
	Scheme  string       `json:"scheme"`            // tcp udp icmp http https dns unix lib
	Host    string       `json:"host,omitempty"`    // name or pattern, where it is not an address
	Prefix  netip.Prefix `json:"prefix,omitzero"`   // address or CIDR, where it is one; a single address is a /32 or /128
	Ports   Ports        `json:"ports,omitzero"`    // for tcp, udp, http, https
	Path    string       `json:"path,omitempty"`    // path prefix, or the path of a socket or library
	Methods []string     `json:"methods,omitempty"` // HTTP methods; none means all
	CA      string       `json:"ca,omitempty"`
	Pos     diag.Pos     `json:"pos"`
}

// Recipe is one recovery scenario of one service.
type Recipe struct {
	Label      string         `json:"label"` // //package:name
	Package    string         `json:"package"`
	Name       string         `json:"name"`
	Service    string         `json:"service"`
	Doc        string         `json:"doc,omitempty"`
	FileDoc    string         `json:"file_doc,omitempty"` // docstring of the file
	Restores   []string       `json:"restores"`           // pathways that it brings back, never empty
	Hardware   []*Hardware    `json:"hardware"`
	Tools      []Tool         `json:"tools"`
	Files      []File         `json:"files"`
	Secrets    []Secret       `json:"secrets"`
	Conditions []Condition    `json:"conditions"`
	Strategy   []Action       `json:"strategy"`
	Validation []*Validation  `json:"validation"`
	Tags       []string       `json:"tags"`
	Within     time.Duration  `json:"within"`
	Estimate   *time.Duration `json:"estimate"`
	Pos        diag.Pos       `json:"pos"`
	// Stack is as for a Service.
	Stack []diag.Frame `json:"stack,omitempty"`
	// Modules are the files whose text went into the recipe, sorted: its own,
	// and all that it loads, directly or not.
	Modules []string `json:"modules"`
}

// Manual reports whether wildcard patterns of bj test leave the recipe out.
func (r *Recipe) Manual() bool { return slices.Contains(r.Tags, "manual") }

// Machines returns all machines of the recipe in order of declaration.
func (r *Recipe) Machines() []Machine {
	var ms []Machine
	for _, h := range r.Hardware {
		ms = append(ms, h.Machines...)
	}
	return ms
}

// Image is what a machine boots: one of Debian, OCI, Disk or Host.
type Image struct {
	Name    string   `json:"name"`
	Debian  []string `json:"debian,omitempty"`
	OCI     string   `json:"oci,omitempty"`
	Disk    string   `json:"disk,omitempty"`
	Host    bool     `json:"host,omitempty"`
	Suite   string   `json:"suite,omitempty"`
	Kernel  string   `json:"kernel,omitempty"`
	Systemd bool     `json:"systemd,omitempty"`
	Pos     diag.Pos `json:"pos"`
}

// Hardware is a group of like machines.
type Hardware struct {
	Name     string    `json:"name"`
	CPUs     int       `json:"cpus"`
	Memory   int64     `json:"memory"` // bytes
	Disk     int64     `json:"disk"`   // bytes
	Image    *Image    `json:"image,omitempty"`
	Doc      string    `json:"doc,omitempty"`
	Machines []Machine `json:"machines"`
	Pos      diag.Pos  `json:"pos"`
}

// Machine is one machine of a Hardware. It always has an address of each
// family; the one that was declared, if any, is Address.
type Machine struct {
	Name     string     `json:"name"`
	Index    int        `json:"index"` // within its hardware
	Address  netip.Addr `json:"address"`
	V4       netip.Addr `json:"v4"`
	V6       netip.Addr `json:"v6"`
	Declared bool       `json:"declared,omitempty"` // Address was written in the recipe
}

// Tool is a program put on PATH of every machine: one of Path, Go, Deb, URL
// or Target.
type Tool struct {
	Name   string   `json:"name"`
	Path   string   `json:"path,omitempty"` // absolute, or relative to the workspace
	Go     string   `json:"go,omitempty"`
	Deb    string   `json:"deb,omitempty"`
	URL    string   `json:"url,omitempty"`
	SHA256 string   `json:"sha256,omitempty"` // lower-case hex
	Target string   `json:"target,omitempty"`
	Kept   *Kept    `json:"kept,omitempty"`
	Doc    string   `json:"doc,omitempty"`
	Pos    diag.Pos `json:"pos"`
}

// Source says where the program comes from, for people: "deb zookeeper=3.8.0-11".
func (t *Tool) Source() string {
	switch {
	case t.Go != "":
		return "go " + t.Go
	case t.Deb != "":
		return "deb " + t.Deb
	case t.URL != "":
		return t.URL
	case t.Target != "":
		return "target " + t.Target
	}
	return t.Path
}

// Kept says where an operator finds a tool in an outage: words, or a condition.
type Kept struct {
	Text  string     `json:"text,omitempty"`
	Allow *Condition `json:"allow,omitempty"`
}

// File is put on machines before the seal closes.
type File struct {
	Path    string   `json:"path"` // absolute, on the machine
	Content string   `json:"content,omitempty"`
	Source  string   `json:"source,omitempty"` // relative to the workspace, or absolute
	Mode    uint32   `json:"mode"`
	On      []string `json:"on"` // machines; all if empty
	Pos     diag.Pos `json:"pos"`
}

// Secret is a value that steps see as $NAME. Exactly one of Value and Source
// is its value in tests.
type Secret struct {
	Name   string   `json:"name"`
	Value  string   `json:"-"`
	Source string   `json:"source,omitempty"` // file, relative to the workspace
	Where  string   `json:"where"`
	Pos    diag.Pos `json:"pos"`
}

// Condition is one allow(...): what may be healthy. Service is a declared
// name, or "*" for everything in production, or empty where Endpoint is set.
type Condition struct {
	Service  string    `json:"service,omitempty"`
	Pathways []string  `json:"pathways,omitempty"` // resolved: never empty for a service
	Endpoint *Endpoint `json:"endpoint,omitempty"`
	Only     []string  `json:"only,omitempty"` // units
	On       []string  `json:"on,omitempty"`   // machines; all if empty
	Why      string    `json:"why,omitempty"`
	Effort   int       `json:"effort"`
	Text     string    `json:"text"` // the call as it would be written: allow("names")
	Pos      diag.Pos  `json:"pos"`
	// Stack is the calls of macros that led to Pos, outermost first.
	Stack []diag.Frame `json:"stack,omitempty"`
}

// Name returns what the condition opens: a service, an endpoint, or "*".
func (c *Condition) Name() string {
	if c.Endpoint != nil {
		return c.Endpoint.URL
	}
	return c.Service
}

// Action is one entry of a strategy: exactly one field is set.
type Action struct {
	Step       *Step       `json:"step,omitempty"`
	Validation *Validation `json:"validation,omitempty"`
	Fault      *Fault      `json:"fault,omitempty"`
}

// Script is what runs on one machine.
type Script struct {
	Machine string `json:"machine"`
	Text    string `json:"text"`
}

// Step is one thing that an operator does, on each machine of Run at once. A
// manual step has an empty Run and only its On.
type Step struct {
	Title   string            `json:"title"`
	On      []string          `json:"on"`  // machines, never empty
	Run     []Script          `json:"run"` // parallel to On; empty for a manual step
	Doc     string            `json:"doc,omitempty"`
	Within  time.Duration     `json:"within"`
	Daemon  bool              `json:"daemon,omitempty"`
	Restart bool              `json:"restart,omitempty"`
	Unit    string            `json:"unit"` // never empty
	User    string            `json:"user"`
	Env     map[string]string `json:"env,omitempty"`
	Expect  string            `json:"expect,omitempty"` // RE2, unanchored
	Capture string            `json:"capture,omitempty"`
	Masked  bool              `json:"masked,omitempty"`
	Retry   int               `json:"retry,omitempty"`
	IfFails string            `json:"if_fails,omitempty"`
	Danger  string            `json:"danger,omitempty"`
	Pos     diag.Pos          `json:"pos"`
}

// Validation holds when its script exits as told and its output matches, on
// enough machines in the same round, for as long as Steady.
type Validation struct {
	Title     string        `json:"title"`
	On        []string      `json:"on"`
	Run       []Script      `json:"run"`
	Expect    string        `json:"expect,omitempty"`
	Exit      int           `json:"exit"`
	Within    time.Duration `json:"within"`
	Every     time.Duration `json:"every"`
	Steady    time.Duration `json:"steady"`
	AtLeast   int           `json:"at_least"` // resolved: 1 … len(On)
	Invariant bool          `json:"invariant,omitempty"`
	Doc       string        `json:"doc,omitempty"`
	Pos       diag.Pos      `json:"pos"`
}

// Fault is something that goes wrong on purpose: exactly one of Kill (a unit),
// Crash and Dark (a condition's service or endpoint) is set.
type Fault struct {
	Title string   `json:"title"`
	On    []string `json:"on"`
	Kill  string   `json:"kill,omitempty"`
	Crash bool     `json:"crash,omitempty"`
	Dark  string   `json:"dark,omitempty"`
	Pos   diag.Pos `json:"pos"`
}
