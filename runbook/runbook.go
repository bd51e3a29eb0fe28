// Package runbook makes pages for operators: how a service is brought back when
// the wiki, the single sign-on and the network are down.
//
// A recipe and its recorded runs go in; Markdown comes out, and HTML is made of
// the Markdown. Nothing here runs anything or reads files by itself, and the
// same input gives the same bytes.
//
//	Options ──► New ──► *Book ──► Page(recipe)   one recipe, nine sections
//	                              BlackStart      the whole fleet, in recovery order
//	                              Index           what there is, by owner and wave
//	             Page ──► HTML, Terminal
//	             ReadMachines ──► *Machines       an operator's own names and addresses
//
// # Foreign text
//
// Whatever recipes and programs wrote is hostile. It passes an ink first, which
// masks secrets, puts an operator's own names in, and makes control characters
// visible; only then is it escaped or fenced as Markdown. Secrets are masked
// before anything is encoded, so that no encoding can hide one.
//
// # Commands
//
// A step's script is put into a file and run from there by sh -e: pasted as it
// stands it would run in the operator's own shell, which a failure or an exec
// would end. See command.go.
package runbook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"time"

	"bj/fleet"
	"bj/graph"
	"bj/run/event"
)

// Options is what pages are made from.
type Options struct {
	Fleet *fleet.Fleet
	Graph *graph.Graph
	// Read returns the content of a file of the workspace, or of an absolute
	// path: sources of files and secrets.
	Read func(path string) ([]byte, error)
	// Digest is that of a recipe as it stands, as its records have it.
	Digest func(*fleet.Fleet, *fleet.Recipe) string
	// Records returns the recorded runs of a recipe, the oldest first; nil:
	// there are none.
	Records  func(label string) []event.Record
	Version  string
	Machines *Machines // nil: machines keep the names and addresses of recipes
}

// Book makes pages.
type Book struct {
	Options
	waves   map[string]int // service → wave, from 1; absent: assumed, or stuck
	order   *graph.Order
	secrets *secrets
	owners  *graph.Owners                     // of endpoints
	back    map[graph.Pathway][]*fleet.Recipe // what brings it back
	hosts   map[netip.Addr]host               // whose declared address it is
}

// host is a machine of a recipe.
type host struct{ label, name string }

// New returns a Book.
func New(o Options) *Book {
	b := &Book{Options: o, waves: map[string]int{}, order: o.Graph.Order(0), secrets: newSecrets(o.Fleet, o.Read), owners: graph.NewOwners(o.Fleet.Services),
		back: map[graph.Pathway][]*fleet.Recipe{}, hosts: map[netip.Addr]host{}}
	for i, wave := range b.order.Waves {
		for _, s := range wave {
			b.waves[s] = i + 1
		}
	}
	for _, r := range o.Fleet.Recipes {
		for _, name := range r.Restores {
			w := graph.Pathway{Service: r.Service, Name: name}
			b.back[w] = append(b.back[w], r)
		}
		for _, m := range r.Machines() {
			for _, a := range []netip.Addr{m.V4, m.V6} {
				if _, taken := b.hosts[a]; m.Declared && !taken {
					b.hosts[a] = host{r.Label, m.Name}
				}
			}
		}
	}
	return b
}

// Page is one page as Markdown.
type Page struct {
	Name     string // of its files, without extension
	Title    string
	Markdown []byte
}

// Name returns the name of a recipe's page, without extension.
func Name(label string) string { return event.SafeName(label) }

// link is the address of a page from another page.
func link(name string) string { return url.PathEscape(name) + ".md" }

// validFor is how long a proof is good before it is to be repeated.
const validFor = 30 * 24 * time.Hour

const sumLine = "SHA-256 of the page above this line: "

// seal appends how to check the page of that name, and the SHA-256 of all that
// is above.
func seal(name, markdown string) []byte {
	markdown += fmt.Sprintf("The last line is the SHA-256 of all lines of the Markdown before it: `head -n -1 %s.md | sha256sum` prints the same.\n\n", name)
	sum := sha256.Sum256([]byte(markdown))
	return fmt.Appendf(nil, "%s%s`%s`\n", markdown, sumLine, hex.EncodeToString(sum[:]))
}

// records returns the recorded runs of a recipe.
func (b *Book) records(label string) []event.Record {
	if b.Records == nil {
		return nil
	}
	return b.Records(label)
}
