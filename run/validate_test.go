package run

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

func TestValidationVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		step    string
		text    string
		change  func(v *fleet.Validation)
		verdict string
		words   []string
	}{
		"holds at last":               {"after 20s touch ready", "test ready", nil, "recovered", nil},
		"too late":                    {"after 40s touch ready", "echo looking\ntest ready", nil, "not recovered validation ready m", []string{"within 30s (tried 30 times): the command ended with exit code 1", "command:\n    echo looking", "end of its output:\n    looking"}},
		"exit as told":                {"touch ready", "test ready\nexit 3", func(v *fleet.Validation) { v.Exit = 3 }, "recovered", nil},
		"other exit":                  {"touch ready", "exit 3", nil, "not recovered validation ready m", []string{"exit code 3"}},
		"expect":                      {"touch ready", "test ready\necho a", func(v *fleet.Validation) { v.Expect = "^a$" }, "recovered", nil},
		"expect, not":                 {"touch ready", "echo a", func(v *fleet.Validation) { v.Expect = "b" }, "not recovered validation ready m", []string{`the output does not match "b"`}},
		"hangs":                       {"touch ready", "echo looking\nforever", nil, "not recovered validation ready m", []string{"the command had not ended", "looking"}},
		"steady":                      {"touch ready", "test ready", func(v *fleet.Validation) { v.Steady = 20 * time.Second }, "recovered", nil},
		"steady, broken":              {"touch ready\nafter 10s rm ready", "test ready", func(v *fleet.Validation) { v.Steady = 20 * time.Second }, "not recovered validation ready m", nil},
		"steady, too late":            {"after 20s touch ready", "test ready", func(v *fleet.Validation) { v.Steady = 20 * time.Second }, "not recovered validation ready m", []string{"not for 20s without a break"}},
		"steady, after a break":       {"touch ready\nafter 5s rm ready\nafter 6s touch ready", "test ready", func(v *fleet.Validation) { v.Steady = 20 * time.Second }, "recovered", nil},
		"steady is less than a round": {"touch ready\nafter 4s rm ready", "test ready", func(v *fleet.Validation) { v.Steady, v.Every = 3*time.Second, time.Minute }, "recovered", nil},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := recipe()
				script(r.Strategy[0].Step, c.step)
				v := validation(r, "ready", c.text)
				if c.change != nil {
					c.change(v)
				}
				r.Validation = []*fleet.Validation{v}
				l.want(r, c.verdict, c.words...)
			})
		})
	}
}

func TestAtLeast(t *testing.T) {
	setup := func(texts ...string) *fleet.Recipe {
		r := recipe()
		r.Hardware = hardware("m", len(texts))
		s := step(r, "go", "")
		for i := range texts {
			s.Run[i].Text = texts[i]
		}
		r.Strategy = []fleet.Action{{Step: s}}
		v := validation(r, "ready", "test ready")
		v.AtLeast = 2
		r.Validation = []*fleet.Validation{v}
		return r
	}
	trial(t, func(l *lab) { l.want(setup("touch ready", "touch ready", "touch x"), "recovered") })
	trial(t, func(l *lab) { // never two in the same round
		l.want(setup("touch ready\nafter 5500ms rm ready", "after 5700ms touch ready", "touch x"), "not recovered validation ready m-0", "1 of 3 machines held, 2 must")
	})
	trial(t, func(l *lab) { // one that hangs keeps nobody waiting
		r := setup("touch ready", "touch ready", "touch ready")
		r.Validation[0].Run[2].Text = "forever"
		start := time.Now()
		l.want(r, "recovered")
		if took := time.Since(start); took > 15*time.Second { // 10 s of it on empty hardware
			t.Errorf("took %s", took)
		}
	})
}

func TestVacuous(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		change  func(v *fleet.Validation)
		verdict string
		words   []string
	}{
		"holds":             {"echo fine", nil, "error vacuous", []string{`"ready" holds on empty hardware`, "it proves nothing"}},
		"invariant":         {"echo fine", func(v *fleet.Validation) { v.Invariant = true }, "recovered", nil},
		"makes it true":     {"count n 2", nil, "error vacuous", []string{"makes true what it looks at"}},
		"takes three looks": {"count n 3", nil, "error vacuous", []string{"makes true what it looks at"}},
		"holds slowly":      {"sleep 9s", nil, "error vacuous", nil},
		"holds late":        {"sleep 11s", nil, "error vacuous", []string{"it takes its time", "makes true what it looks at"}},
		"hangs, then holds": {"test ready", nil, "recovered", nil},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := recipe()
				v := validation(r, "ready", c.text)
				if c.change != nil {
					c.change(v)
				}
				r.Validation = []*fleet.Validation{v}
				l.want(r, c.verdict, c.words...)
				late := slices.ContainsFunc(c.words, func(w string) bool { return strings.Contains(w, "makes true") })
				if c.verdict == "error vacuous" && !late && len(l.of(event.StepStarted)) > 0 {
					t.Error("a step was done all the same")
				}
			})
		})
	}
	trial(t, func(l *lab) { // also between steps
		r := recipe()
		r.Strategy = append(r.Strategy, fleet.Action{Validation: validation(r, "between", "echo x")})
		l.want(r, "error vacuous", `"between"`)
	})
	trial(t, func(l *lab) { // the empty machines are others, and thrown away
		r := recipe()
		r.Validation = []*fleet.Validation{validation(r, "ready", "test ready\ntouch seen")}
		r.Strategy = append(r.Strategy, fleet.Action{Validation: validation(r, "unseen", "test ready\ntest unseen")})
		r.Strategy[0].Step.Run[0].Text = "touch ready\ntouch unseen"
		l.want(r, "recovered")
		if n := len(l.provider.leases); n != 2 {
			t.Errorf("%d environments", n)
		}
	})
}
