package runbook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// proof is what recorded runs say of a recipe as it is now.
type proof struct {
	last    *event.Record // the newest that says something of the recipe
	good    *event.Record // the newest of those that recovered
	errored *event.Record // the newest of all, if it ended in an error that does not
	all     []event.Record
	changed bool // the recipe is not what it was at good
	failed  bool // last did not recover
}

// proofOf looks at the records of a recipe, the oldest first.
func proofOf(records []event.Record, digest string) proof {
	p := proof{}
	for i := range records {
		x := &records[i]
		switch {
		case len(x.Given) > 0: // it was of another program
		case !x.Conclusive():
			p.errored = x
		case x.Verdict.Verdict == event.Recovered:
			p.last, p.good, p.errored = x, x, nil
			p.all = append(p.all, *x)
		default:
			p.last, p.errored = x, nil
		}
	}
	p.failed = p.last != nil && p.last.Verdict.Verdict != event.Recovered
	p.changed = p.good != nil && p.good.Digest != digest
	return p
}

// day is a time as pages give it.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// took is how long something took, for people.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return fleet.FormatDuration(d.Round(time.Second))
}

// seconds is a recorded duration.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// number returns the number of a step by its title; 0 for what is none.
func number(r *fleet.Recipe, title string) int {
	n := 0
	for _, a := range r.Strategy {
		if a.Step != nil {
			if n++; a.Step.Title == title {
				return n
			}
		}
	}
	return 0
}

// stamp is the verdict in a few words; the first is what a person looks for.
func (p *proof) stamp(r *fleet.Recipe, k *ink) (word, rest string) {
	switch {
	case p.failed:
		word = "Not proven"
		if p.good != nil {
			word = "Not proven since " + day(p.good.End)
		}
		return word, p.failure(r, k)
	case p.good == nil:
		return "Never run", ""
	}
	word = "Proven"
	if steps := byHand(r); len(steps) > 0 {
		word += " except step " + join(steps)
	}
	return word, "on " + day(p.good.End)
}

// byHand returns the numbers of the steps that nobody could test.
func byHand(r *fleet.Recipe) []string {
	var out []string
	n := 0
	for _, a := range r.Strategy {
		if a.Step != nil {
			if n++; len(a.Step.Run) == 0 {
				out = append(out, fmt.Sprint(n))
			}
		}
	}
	return out
}

// join lists words: "1, 2 and 3".
func join(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// failure says what failed last.
func (p *proof) failure(r *fleet.Recipe, k *ink) string {
	if p.last.Verdict.Verdict == event.Errored {
		return "a validation holds on empty machines too, and proves nothing"
	}
	f := p.last.Failed
	if f == nil {
		return "the last run failed"
	}
	where := ""
	if f.Machine != "" {
		where = " on " + code(k.line(k.machines.name(f.Machine)))
	}
	if n := number(r, f.Title); n > 0 {
		return fmt.Sprintf("step %d fails%s", n, where)
	}
	if f.Title == "" {
		return "it took too long"
	}
	return fmt.Sprintf("“%s” fails%s", inline(k.line(f.Title)), where)
}

// on returns what the run that recovered says of a step on one machine, the
// last attempt at it; a validation has no machine.
func (p *proof) on(title, machine string) *event.StepRecord {
	if p.good == nil {
		return nil
	}
	for _, s := range slices.Backward(p.good.Steps) {
		if s.Title == title && (s.Machine == machine || s.Held != nil) {
			return &s
		}
	}
	return nil
}

// times returns the median and longest time of a step in the runs that
// recovered: in each, that of the slowest machine, with all attempts.
func (p *proof) times(title string) (median, longest time.Duration, runs int) {
	var all []float64
	for _, x := range p.all {
		sum := map[string]float64{}
		most := -1.0
		for _, s := range x.Steps {
			if s.Title == title {
				sum[s.Machine] += s.Seconds
				most = max(most, sum[s.Machine])
			}
		}
		if most >= 0 {
			all = append(all, most)
		}
	}
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return seconds(all[(len(all)-1)/2]), seconds(all[len(all)-1]), len(all)
}
