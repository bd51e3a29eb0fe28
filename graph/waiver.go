package graph

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/fleet"
	"bj/lang/diag"
)

// ReadWaivers reads a file of waivers: a list of objects with services, owner,
// reason and expires (YYYY-MM-DD), or an object whose "waivers" is one. File is
// its name, for places.
func ReadWaivers(file string, data []byte) ([]fleet.Waiver, error) {
	type entry struct {
		Services []string `json:"services"`
		Owner    string   `json:"owner"`
		Reason   string   `json:"reason"`
		Expires  string   `json:"expires"`
	}
	var whole struct {
		Waivers []json.RawMessage `json:"waivers"`
	}
	var err error
	if trimmed := bytes.TrimSpace(data); len(trimmed) > 0 && trimmed[0] == '[' {
		err = json.Unmarshal(data, &whole.Waivers)
	} else {
		err = json.Unmarshal(data, &whole)
	}
	if err != nil {
		return nil, fmt.Errorf("reading waivers: %s: %w", file, err)
	}
	var out []fleet.Waiver
	for i, raw := range whole.Waivers {
		// Where an entry begins is not told by the decoder; it is verbatim.
		line := 1 + bytes.Count(data[:max(bytes.Index(data, raw), 0)], []byte("\n"))
		pos := diag.Pos{File: file, Line: line}
		var e entry
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("reading waivers: %s: entry %d: %w", pos, i+1, err)
		}
		_, bad := time.Parse(time.DateOnly, e.Expires)
		switch {
		case len(e.Services) == 0:
			err = fmt.Errorf("it names no services")
		case e.Owner == "" || e.Reason == "":
			err = fmt.Errorf("it needs an owner and a reason")
		case bad != nil:
			err = fmt.Errorf("malformed date %q: dates are written like 2030-01-31", e.Expires)
		}
		if err != nil {
			return nil, fmt.Errorf("reading waivers: %s: entry %d: %w", pos, i+1, err)
		}
		out = append(out, fleet.Waiver{Services: e.Services, Owner: e.Owner, Reason: e.Reason, Expires: e.Expires, Pos: pos})
	}
	return out, nil
}

// Waive marks the cycles whose members a waiver names. One that has expired
// before now does not count, and is a warning; one whose cycle does not exist is
// an error. Its last day is the day that it names, in UTC.
func (c *Cycles) Waive(waivers []fleet.Waiver, now time.Time) diag.List {
	today := now.UTC().Format(time.DateOnly)
	cycles := map[string][]int{}
	for i := range c.Cycles {
		key := joined(c.Cycles[i].Services)
		cycles[key] = append(cycles[key], i)
	}
	var found diag.List
	for _, w := range waivers {
		services := slices.Clone(w.Services)
		slices.Sort(services)
		services = slices.Compact(services)
		which := cycles[joined(services)]
		if which == nil {
			found = append(found, diag.Diagnostic{
				Pos: w.Pos, Severity: diag.Error, Rule: "waiver",
				Message: fmt.Sprintf("there is no cycle of %s to waive", andList(services)), Hint: c.nearest(services),
			})
			continue
		}
		if w.Expires < today {
			found = append(found, diag.Diagnostic{
				Pos: w.Pos, Severity: diag.Warning, Rule: "waiver",
				Message: fmt.Sprintf("the waiver for the cycle of %s expired on %s: it counts again", andList(services), w.Expires),
				Hint:    "ask " + w.Owner + ": " + w.Reason,
			})
			continue
		}
		for _, i := range which {
			c.Cycles[i].Waived = true
			c.Cycles[i].Reason = fmt.Sprintf("%s (%s, until %s)", w.Reason, w.Owner, w.Expires)
		}
	}
	return found
}

// nearest says which cycle a waiver could have meant.
func (c *Cycles) nearest(services []string) string {
	best, shared := -1, 0
	for i := range c.Cycles {
		n := 0
		for _, s := range c.Cycles[i].Services {
			if slices.Contains(services, s) {
				n++
			}
		}
		if n > shared {
			best, shared = i, n
		}
	}
	if best < 0 {
		return "take the waiver out: what it names is no cycle any more"
	}
	return "there is one of " + andList(c.Cycles[best].Services) + "; a waiver names all members of a cycle"
}

// andList writes names as a sentence does, at most 12 of them.
func andList(names []string) string {
	const most = 12
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
