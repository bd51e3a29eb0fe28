package run

import (
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// daemonRecipe starts one daemon, and validates for steady.
func daemonRecipe(text string, steady time.Duration) *fleet.Recipe {
	r := recipe()
	d := daemonStep(r, "serve", text)
	d.Unit = "srv"
	r.Strategy = []fleet.Action{{Step: d}}
	r.Validation[0].Steady = steady
	r.Validation[0].Within = time.Minute
	return r
}

func TestDaemonVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		steady  time.Duration
		change  func(r *fleet.Recipe, d *fleet.Step)
		verdict string
		words   []string
	}{
		"lives":               {"touch ready\nforever", time.Second, nil, "recovered", nil},
		"ends at once":        {"exit 1", 0, nil, "not recovered daemon serve m", []string{"exit code 1", "must keep running"}},
		"ends at once with 0": {"touch ready\nexit 0", 0, nil, "not recovered daemon serve m", []string{"exit code 0"}},
		"dies late":           {"touch ready\necho bye\nsleep 10s\nexit 4", 20 * time.Second, nil, "not recovered daemon serve m", []string{`the daemon "serve" ended with exit code 4 on m`, "bye"}},
		"dies late with 0":    {"touch ready\nsleep 10s", 20 * time.Second, nil, "not recovered daemon serve m", []string{"exit code 0"}},
		"dies while the seal is tried": {"touch ready\nsleep 2020ms", time.Second, func(r *fleet.Recipe, d *fleet.Step) {
			r.Validation[0].Every = 100 * time.Millisecond
			r.Validation[0].Steady = 1900 * time.Millisecond
		}, "not recovered daemon serve m", nil},
		"expect":                 {"sleep 10s\necho serving now\ntouch ready\nforever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Expect = "serving" }, "recovered", nil},
		"expect of the silent":   {"forever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Expect = "serving" }, "not recovered step serve m", []string{"it runs and has printed nothing"}},
		"expect in vain":         {"echo starting\nforever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Expect = "serving" }, "not recovered step serve m", []string{`did not match "serving" within 5m0s`, "starting"}},
		"ends unexpected":        {"echo starting\nsleep 3s", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Expect = "serving" }, "not recovered daemon serve m", nil},
		"retried":                {"count n 2\ntouch ready\nforever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Retry = 1 }, "recovered", nil},
		"restarted":              {"count n 4\ntouch ready\nforever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Restart = true }, "recovered", nil},
		"restarted, ready later": {"count n 4\necho serving\ntouch ready\nforever", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Restart, d.Expect = true, "serving" }, "recovered", nil},
		"restarted in vain":      {"exit 1", 0, func(r *fleet.Recipe, d *fleet.Step) { d.Restart, d.Expect = true, "serving" }, "not recovered step serve m", nil},
		"restart forever":        {"touch ready\nsleep 1s", 20 * time.Second, func(r *fleet.Recipe, d *fleet.Step) { d.Restart = true }, "recovered", nil},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := daemonRecipe(c.text, c.steady)
				if c.change != nil {
					c.change(r, r.Strategy[0].Step)
				}
				l.want(r, c.verdict, c.words...)
			})
		})
	}
}

func TestDaemonsDeathEndsWhatWaits(t *testing.T) {
	trial(t, func(l *lab) {
		r := daemonRecipe("sleep 10s\nexit 1", 0)
		r.Strategy = append(r.Strategy, fleet.Action{Step: step(r, "wait", "sleep 4m")})
		start := time.Now()
		l.want(r, "not recovered daemon serve m")
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("the death was noticed after %s", took)
		}
	})
	trial(t, func(l *lab) {
		r := daemonRecipe("sleep 10s\nexit 1", 0) // the validation never holds
		start := time.Now()
		l.want(r, "not recovered daemon serve m")
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("the death was noticed after %s", took)
		}
	})
}

func TestRestartIsReported(t *testing.T) {
	trial(t, func(l *lab) {
		r := daemonRecipe("touch ready\nsleep 5s\nexit 7", 12*time.Second)
		r.Strategy[0].Step.Restart = true
		l.want(r, "recovered")
		notes := l.of(event.Note)
		if len(notes) != 2 || !strings.Contains(notes[0].Text, "exit code 7") {
			t.Errorf("notes: %+v", notes)
		}
	})
}

func fault(title, unit string, on ...string) fleet.Action {
	return fleet.Action{Fault: &fleet.Fault{Title: title, On: on, Kill: unit, Crash: unit == ""}}
}

func TestFaults(t *testing.T) {
	three := func() *fleet.Recipe {
		r := recipe()
		r.Hardware = hardware("m", 3)
		d := daemonStep(r, "serve", "touch ready\nforever")
		d.Unit = "srv"
		r.Strategy = []fleet.Action{{Step: d}}
		r.Validation = []*fleet.Validation{validation(r, "ready", "test ready")}
		return r
	}
	for name, c := range map[string]struct {
		change  func(r *fleet.Recipe)
		verdict string
		words   []string
	}{
		"kill": {func(r *fleet.Recipe) { r.Strategy = append(r.Strategy, fault("loss", "srv", "m-0", "m-1")) }, "recovered", nil},
		"kill, and another dies of it": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fleet.Action{Step: daemonStep(r, "other", "sleep 30s")}, fault("loss", "srv", "m-0"))
			r.Validation[0].Steady, r.Validation[0].Within = time.Minute, 2*time.Minute
		}, "not recovered daemon other m-", nil},
		"kill, one that is restarted": {func(r *fleet.Recipe) {
			d := r.Strategy[0].Step
			d.Restart = true
			script(d, "touch ready\nforever")
			rm := step(r, "forget", "rm ready")
			r.Strategy = append(r.Strategy, fleet.Action{Step: rm}, fault("loss", "srv", "m-0", "m-1", "m-2"))
		}, "recovered", nil},
		"kill, started again by hand, dies": {func(r *fleet.Recipe) {
			d := daemonStep(r, "again", "sleep 20s")
			d.Unit = "srv"
			r.Strategy = append(r.Strategy, fault("loss", "srv", "m-0", "m-1", "m-2"), fleet.Action{Step: d})
			r.Validation[0].Steady = 25 * time.Second
		}, "not recovered daemon again m-", nil},
		"nothing to kill": {func(r *fleet.Recipe) { r.Strategy = append(r.Strategy, fault("loss", "nobody", "m-0")) }, "error", []string{`"loss" had nothing to kill`, `"nobody" runs on m-0`}},
		"killed twice": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fault("loss", "srv", "m-0"), fault("more", "srv", "m-0"))
		}, "error", []string{`"more" had nothing to kill`}},
		"crash, all must hold": {func(r *fleet.Recipe) { r.Strategy = append(r.Strategy, fault("loss", "", "m-1")) },
			"not recovered validation ready m-1", []string{"2 of 3 machines held, 3 must", "the machine is gone"}},
		"crash, two must hold": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fault("loss", "", "m-1"))
			r.Validation[0].AtLeast, r.Validation[0].Steady = 2, 5*time.Second
		}, "recovered", nil},
		"crash, then a step": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fault("loss", "", "m-1"), fleet.Action{Step: step(r, "more", "touch x")})
		}, "not recovered step more m-1", []string{`cannot run on m-1: the fault "loss" crashed it`}},
		"crash twice": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fault("loss", "", "m-1"), fault("more", "", "m-1"))
		}, "error", []string{"nothing to crash"}},
		"crash of all": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fault("loss", "", "m-0", "m-1", "m-2"))
		}, "not recovered validation ready m-0", nil},
		"dark": {func(r *fleet.Recipe) {
			r.Strategy = append(r.Strategy, fleet.Action{Fault: &fleet.Fault{Title: "night", On: []string{"m-0"}, Dark: "names"}})
		}, "error", []string{"had nothing to close"}},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := three()
				c.change(r)
				v := l.run(r)[0]
				if strings.HasSuffix(c.verdict, "m-") { // any of them
					v.Failed.Machine = "m-"
				}
				l.check(v, c.verdict, c.words...)
			})
		})
	}
}
