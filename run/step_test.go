package run

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bj/fleet"
	"bj/run/event"
)

// with returns recipe() with another step.
func with(change func(r *fleet.Recipe, s *fleet.Step)) *fleet.Recipe {
	r := recipe()
	change(r, r.Strategy[0].Step)
	return r
}

func script(s *fleet.Step, text string) {
	for i := range s.Run {
		s.Run[i].Text = text
	}
}

func TestStepVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		change  func(s *fleet.Step)
		verdict string
		words   []string
	}{
		"exit code":             {"echo hello\nexit 3", nil, "not recovered step go m", []string{`step "go" failed on m: it ended with exit code 3`, "command:\n    echo hello\n    exit 3", "end of its output:\n    hello"}},
		"not found":             {"nonsense", nil, "not recovered step go m", []string{"exit code 127", "nonsense: not found"}},
		"silent":                {"exit 1", nil, "not recovered step go m", []string{"it printed nothing"}},
		"out of memory":         {"oom", nil, "not recovered step go m", []string{"memory (256 MiB) was used up"}},
		"too long":              {"echo begun\nsleep 10m", func(s *fleet.Step) { s.Within = time.Minute }, "not recovered step go m", []string{"it had not ended after 1m0s", "begun"}},
		"expect":                {"echo a\nerr b\ntouch ready", func(s *fleet.Step) { s.Expect = "a" }, "recovered", nil},
		"expect on stderr":      {"echo a\nerr b\ntouch ready", func(s *fleet.Step) { s.Expect = "^b" }, "recovered", nil},
		"expect, whole line":    {"echo 3\ntouch ready", func(s *fleet.Step) { s.Expect = "^3$" }, "recovered", nil},
		"expect, with newline":  {"echo 3\ntouch ready", func(s *fleet.Step) { s.Expect = `3\n$` }, "recovered", nil},
		"expect, not":           {"echo a\ntouch ready", func(s *fleet.Step) { s.Expect = "^b" }, "not recovered step go m", []string{`does not match "^b"`}},
		"expect over both":      {"echo a\nerr b\ntouch ready", func(s *fleet.Step) { s.Expect = `(?s)a.*b` }, "not recovered step go m", nil},
		"expect, but exit code": {"echo a\nexit 1", func(s *fleet.Step) { s.Expect = "a" }, "not recovered step go m", []string{"exit code 1"}},
		"retry, enough":         {"count n 3\ntouch ready", func(s *fleet.Step) { s.Retry = 2 }, "recovered", nil},
		"retry, out of time":    {"exit 1", func(s *fleet.Step) { s.Retry = 1000 }, "not recovered timeout go m", []string{"its limit"}},
		"retry, too few":        {"count n 4\ntouch ready", func(s *fleet.Step) { s.Retry = 2 }, "not recovered step go m", nil},
		"masked":                {"echo hidden\nerr hidden\nexit 1", func(s *fleet.Step) { s.Masked = true }, "not recovered step go m", []string{"(masked)"}},
		"machine lost":          {"unplug", nil, "error lease", []string{"m was lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			trial(t, func(l *lab) {
				r := with(func(r *fleet.Recipe, s *fleet.Step) {
					if c.change != nil {
						c.change(s)
					}
					script(s, c.text)
				})
				v := l.want(r, c.verdict, c.words...)
				if strings.Contains(l.output()+v.Reason[strings.LastIndex(v.Reason, "output")+1:], "hidden") {
					t.Errorf("a masked step was shown: %s%s", l.output(), v.Reason)
				}
			})
		})
	}
}

func TestStepsRunOnAllMachinesAtOnce(t *testing.T) {
	trial(t, func(l *lab) {
		r := recipe()
		r.Hardware = hardware("m", 3)
		r.Strategy = []fleet.Action{{Step: step(r, "go", "sleep 10s\ntouch ready")}}
		r.Validation = []*fleet.Validation{validation(r, "ready", "test ready")}
		start := time.Now()
		l.want(r, "recovered")
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("three machines took %s", took)
		}
		if n := len(l.of(event.StepFinished)); n != 3 {
			t.Errorf("%d steps finished", n)
		}
	})
}

func TestOneMachineFailsTheStep(t *testing.T) {
	trial(t, func(l *lab) {
		r := recipe()
		r.Hardware = hardware("m", 3)
		s := step(r, "go", "sleep 4m")
		s.Run[1].Text = "exit 9"
		r.Strategy = []fleet.Action{{Step: s}}
		r.Validation = []*fleet.Validation{validation(r, "ready", "test ready")}
		start := time.Now()
		l.want(r, "not recovered step go m-1", "exit code 9")
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the others were waited for: %s", took)
		}
	})
}

func TestRecipeLimit(t *testing.T) {
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			r.Within = time.Minute
			script(s, "echo begun\nsleep 3m")
		})
		l.want(r, "not recovered timeout go m", "1m0s", "begun")
	})
	trial(t, func(l *lab) {
		r := recipe()
		r.Within = 5 * time.Second
		r.Validation[0].Run[0].Text = "echo looking\ntest other"
		l.want(r, "not recovered timeout ready m", "5s", "looking")
	})
}

func TestCapture(t *testing.T) {
	trial(t, func(l *lab) {
		r := recipe()
		r.Hardware = hardware("m", 2)
		get := step(r, "get", "echo s3same")
		get.On, get.Run, get.Capture = get.On[:1], get.Run[:1], "TOKEN"
		use := step(r, "use", "echo $TOKEN")
		use.Expect = "^s3same$"
		own := step(r, "own", "echo $TOKEN")
		own.Expect, own.Env = "^mine$", map[string]string{"TOKEN": "mine"}
		r.Strategy = []fleet.Action{{Step: get}, {Step: use}, {Step: own}}
		v := validation(r, "seen", "echo $TOKEN")
		v.Expect = "s3same"
		r.Validation = []*fleet.Validation{v}
		l.want(r, "recovered")
	})
	trial(t, func(l *lab) { // masked from the moment it is known
		r := recipe()
		get := step(r, "get", "echo s3same")
		get.Capture, get.Masked = "TOKEN", true
		r.Strategy = []fleet.Action{{Step: get}, {Step: step(r, "use", "echo $TOKEN\nexit 1")}}
		v := l.want(r, "not recovered step use m", "***")
		if strings.Contains(l.output()+v.Reason, "s3same") {
			t.Errorf("the capture shows:\n%s\n%s", l.output(), v.Reason)
		}
	})
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			script(s, "echo "+strings.Repeat("x", maxCapture+1))
			s.Capture = "TOKEN"
		})
		l.want(r, "not recovered step go m", "64 KiB")
	})
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) { script(s, `raw "a\x00b"`); s.Capture = "TOKEN" })
		l.want(r, "not recovered step go m", "zero byte")
	})
}

func TestSecretsAreMasked(t *testing.T) {
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			r.Secrets = []fleet.Secret{{Name: "KEY", Value: "hunter2"}, {Name: "PEM", Value: "first line\nsecond line\n"}}
			script(s, strings.Join([]string{
				"echo $KEY", `raw "hun" "ter2" "\n"`, `raw "hunhunter2hunter"`, "echo $PEM", `raw "second" " line" "!"`, "err hunter2", "# hunter2", "exit 1",
			}, "\n"))
		})
		v := l.want(r, "not recovered step go m", "***")
		for _, e := range l.events {
			line, err := event.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"hunter2", "first line", "second line"} {
				if strings.Contains(string(line), secret) {
					t.Errorf("%q shows in %s", secret, line)
				}
			}
		}
		if want := "***\n***\nhun***hunter"; !strings.HasPrefix(l.output(), want) {
			t.Errorf("output is %q", l.output())
		}
		_ = v
	})
}

func TestLongAndBinaryOutput(t *testing.T) {
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			script(s, strings.Repeat("raw \""+strings.Repeat("0123456789abcdef", 1<<12)+"\\n\"\n", 16)+"echo the end\ntouch ready")
			s.Expect = `^0123(?s:.*)the end$`
		})
		size, largest := 0, 0
		l.options.Sink = func(e event.Event) { size += len(e.Text); largest = max(largest, len(e.Text)) }
		l.want(r, "recovered")
		if size < 16<<16 || largest > maxText {
			t.Errorf("%d bytes in pieces of up to %d", size, largest)
		}
	})
	trial(t, func(l *lab) {
		r := with(func(r *fleet.Recipe, s *fleet.Step) {
			script(s, `raw "\xff\xfe" "caf\xc3" "\xa9 \xe2\x82" "\xac" "\xe2"`+"\ntouch ready")
		})
		l.want(r, "recovered")
		if want := "\uFFFDcafé €\uFFFD"; l.output() != want {
			t.Errorf("output is %q, want %q", l.output(), want)
		}
	})
}

func TestManualStep(t *testing.T) {
	trial(t, func(l *lab) {
		r := recipe()
		r.Strategy = append(r.Strategy, fleet.Action{Step: &fleet.Step{Title: "turn the key", On: []string{"m"}, Unit: "x"}})
		v := l.want(r, "recovered", "proven except what is done by hand: turn the key")
		if len(v.Except) != 1 {
			t.Errorf("%+v", v)
		}
	})
}

func TestBlockedIsBlamed(t *testing.T) {
	trial(t, func(l *lab) {
		l.fleet.Services = append([]*fleet.Service{service("pkgs", "read", "tcp://10.0.0.0/24:443", "write", "tcp://10.0.0.5:443")}, l.fleet.Services...)
		r := with(func(r *fleet.Recipe, s *fleet.Step) { script(s, "connect 10.0.0.5:443") })
		r.Strategy = append([]fleet.Action{{Step: step(r, "before", "touch x")}}, r.Strategy...)
		l.want(r, "not recovered step go m", "blocked by the seal while it ran:\n    tcp 10.0.0.5:443: it belongs to pkgs; allow(\"pkgs\", \"write\") would allow it")
		bs := l.of(event.BlockedSeen)
		if len(bs) != 2 || bs[1].Blocked.Count != 0 || bs[1].Blocked.Mattered == nil || !*bs[1].Blocked.Mattered {
			t.Fatalf("blocked events: %+v", bs)
		}
		if bs[0].Blocked.Mattered != nil || bs[0].Step != "go" || bs[0].Machine != "m" || *bs[0].Blocked.Service != "pkgs" || bs[0].Blocked.Count != 1 {
			t.Errorf("blocked events: %+v", bs)
		}
	})
}

func service(name string, pathways ...string) *fleet.Service {
	s := &fleet.Service{Name: name}
	for i := 0; i < len(pathways); i += 2 {
		e, err := fleet.ParseEndpoint(pathways[i+1])
		if err != nil {
			panic(fmt.Sprint(pathways[i+1], ": ", err))
		}
		s.Pathways = append(s.Pathways, fleet.Pathway{Name: pathways[i], Endpoints: []fleet.Endpoint{e}})
	}
	return s
}
