package runbook

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"bj/fleet"
)

// maxFile is the size of the largest file that is a block on a page, in bytes.
const maxFile = 128 << 10

// hardware is section 4.
func (p *page) hardware() {
	p.section(4, "Machines")
	filled := p.b.Machines != nil
	p.f("| in the recipe | your machine | IPv4 | IPv6 | size | image |\n| --- | --- | --- | --- | --- | --- |\n")
	var hosts strings.Builder
	for _, h := range p.r.Hardware {
		image := "the workspace's"
		if h.Image != nil {
			image = cell(inline(p.line(h.Image.Name)))
		}
		for _, m := range h.Machines {
			own, v4, v6 := "______", m.V4.String(), m.V6.String()
			aliases := m.Name
			if filled {
				v4, v6 = p.machines.addr(m.V4), p.machines.addr(m.V6)
				own = code(p.machines.name(m.Name))
				if n := p.machines.name(m.Name); n != m.Name {
					aliases = n + " " + m.Name
				}
			}
			p.f("| %s | %s | %s | %s | %d × CPU, %s memory, %s disk | %s |\n", code(m.Name), own, code(v4), code(v6), h.CPUs, fleet.FormatSize(h.Memory), fleet.FormatSize(h.Disk), image)
			fmt.Fprintf(&hosts, "%s %s\n%s %s\n", v4, aliases, v6, aliases)
		}
	}
	p.f("\n")
	for _, h := range p.r.Hardware {
		if h.Doc != "" {
			p.f("%s: %s\n\n", code(h.Name), inline(p.line(h.Doc)))
		}
	}
	switch {
	case filled && len(p.machines.changed) > 0:
		p.f("Your names and addresses were filled in: in all commands, files and outputs of this page, these were replaced wherever they stand by themselves:\n\n")
		for _, c := range p.machines.changed {
			p.f("- %s\n", code(c))
		}
		p.f("\nWhat is fetched or computed while the steps run was not, nor were networks (`10.0.0.0/8`) and parts of other names.\n\n")
	case filled:
		p.f("None of these machines is in the list of yours, so names and addresses are the recipe's.\n\n")
	default:
		p.f("Names and addresses are the recipe's: give them to your machines, or make this page again with `--machines hosts.csv`, which fills in yours.\n\n")
	}
	if p.s != nil && len(p.s.Listens) > 0 {
		var ports []string
		for _, l := range p.s.Listens {
			ports = append(ports, code(l.String()))
		}
		p.f("The service listens on %s: there its machines must reach each other.\n\n", join(ports))
	}
	p.f("On each machine, so that they know each other:\n\n%s\n", fence("sh", "cat >>/etc/hosts <<'END'\n"+hosts.String()+"END"))
}

// tools is section 5.
func (p *page) tools() {
	p.section(5, "Tools, files, secrets")
	if len(p.r.Tools)+len(p.r.Files)+len(p.r.Secrets) == 0 {
		p.f("None.\n\n")
		return
	}
	if len(p.r.Tools) > 0 {
		p.f("Put on `PATH` of every machine:\n\n| tool | from | where it is kept | SHA-256 |\n| --- | --- | --- | --- |\n")
		for i := range p.r.Tools {
			t := &p.r.Tools[i]
			kept := "not said"
			if t.Kept != nil && t.Kept.Allow != nil {
				kept = "in " + escape(p.line(t.Kept.Allow.Name()))
				if links := p.links(t.Kept.Allow); len(links) > 0 {
					kept += ", by " + strings.Join(links, " or ")
				}
			} else if t.Kept != nil {
				kept = inline(p.line(t.Kept.Text))
			}
			name := code(p.line(t.Name))
			if t.Doc != "" {
				name += ", which " + inline(p.line(t.Doc))
			}
			digest := "not known"
			if d := p.sum(t); d != "" {
				digest = code(d)
			}
			p.f("| %s | %s | %s | %s |\n", cell(name), cell(code(p.line(t.Source()))), cell(kept), cell(digest))
		}
		p.f("\n")
	}
	for i := range p.r.Secrets {
		s := &p.r.Secrets[i]
		where := p.line(s.Where)
		if where == "" {
			where = "not said where"
		}
		p.f("The secret %s is kept here: %s. On each machine, paste this with the value in place of the middle line:\n\n%s\n", code(s.Name), inline(strings.TrimSuffix(where, ".")), fence("sh", value(s.Name, "PASTE THE VALUE OF "+s.Name+" HERE")))
	}
	for i := range p.r.Files {
		p.file(&p.r.Files[i])
	}
}

// value is what an operator pastes to keep a value where steps find it.
func value(name, words string) string {
	return fmt.Sprintf("mkdir -p %[1]s\n(umask 077; cat >%[1]s/%[2]s <<'END'\n%[3]s\nEND\n)", home, name, words)
}

// file writes one file of section 5.
func (p *page) file(f *fleet.File) {
	where := "On each machine"
	if len(f.On) > 0 {
		where = "On " + p.names(f.On)
	}
	name := p.verbatim(f.Path)
	p.f("%s, the file %s", where, code(p.line(f.Path)))
	content := f.Content
	if f.Source != "" {
		p.f(", from %s of the workspace", code(p.line(f.Source)))
		data, err := p.b.Read(f.Source)
		if err != nil {
			p.f(". **Its content is not here: it cannot be read.**\n\n")
			return
		}
		content = string(data)
	}
	before := p.mask(content)
	masked := before != content
	content = p.machines.text(before)
	sum := sha256.Sum256([]byte(content))
	digest := code(hex.EncodeToString(sum[:]))
	switch {
	case len(content) > maxFile && !masked:
		p.f(". It has %d bytes and is not printed here: bring it along. SHA-256: %s\n\n", len(content), digest)
		return
	case masked:
		p.f(". **It holds a secret, which reads `%s` here: put in what is meant.**\n\n", maskText)
	default:
		p.f(", SHA-256 %s:\n\n", digest)
	}
	p.WriteString(fence("sh", file(name, content, f.Mode)) + "\n")
}

// sum is the SHA-256 of a tool: the recipe's, or that of the run that recovered.
func (p *page) sum(t *fleet.Tool) string {
	if t.SHA256 != "" || p.proof.good == nil {
		return t.SHA256
	}
	for _, free := range p.proof.good.Free {
		if rest, ok := strings.CutPrefix(free, "tool "+t.Name+":"); ok {
			if _, d, ok := strings.Cut(rest, ", sha256 "); ok {
				return p.line(d)
			}
		}
	}
	return ""
}
