package graph

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// SARIF 2.1.0, as far as it is written here. Code scanning wants stable rule
// ids, paths relative to the repository, and fingerprints that survive edits.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version,omitempty"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string       `json:"id"`
		Name    string       `json:"name"`
		Short   sarifMessage `json:"shortDescription"`
		Full    sarifMessage `json:"fullDescription"`
		Help    sarifMessage `json:"help"`
		Default struct {
			Level string `json:"level"`
		} `json:"defaultConfiguration"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID       string             `json:"ruleId"`
		RuleIndex    int                `json:"ruleIndex"`
		Level        string             `json:"level"`
		Message      sarifMessage       `json:"message"`
		Locations    []sarifLocation    `json:"locations"`
		Related      []sarifLocation    `json:"relatedLocations,omitempty"`
		Fingerprints map[string]string  `json:"partialFingerprints"`
		Suppressions []sarifSuppression `json:"suppressions,omitempty"`
	}
	sarifLocation struct {
		ID       *int `json:"id,omitempty"`
		Physical struct {
			Artifact struct {
				URI     string `json:"uri"`
				URIBase string `json:"uriBaseId"`
			} `json:"artifactLocation"`
			Region *sarifRegion `json:"region,omitempty"`
		} `json:"physicalLocation"`
		Message *sarifMessage `json:"message,omitempty"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifSuppression struct {
		Kind          string `json:"kind"`
		Justification string `json:"justification"`
	}
)

// maxSARIFLocations is what code scanning takes of one result.
const maxSARIFLocations = 1000

// WriteSARIF writes the cycles as a SARIF 2.1.0 log: a result for each, at the
// edge to cut. Version is bj's own.
func (c *Cycles) WriteSARIF(out io.Writer, version string) error {
	var run sarifRun
	run.ColumnKind = "utf16CodeUnits"
	rule := func(id, name, level, short, full string) {
		r := sarifRule{ID: id, Name: name, Short: sarifMessage{short}, Full: sarifMessage{full}, Help: sarifMessage{"bj graph --cycles explains each cycle, bj graph --cuts the cheapest way to break them all."}}
		r.Default.Level = level
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, r)
	}
	run.Tool.Driver.Name, run.Tool.Driver.Version = "bj", version
	rule("bj-cycle-blocking", "BlockingCycle", "error", "Services that need each other to come back.", "After an outage of all of them, no choice of recipes brings these services back from nothing.")
	rule("bj-cycle-avoidable", "AvoidableCycle", "note", "A recovery cycle that an alternative recipe avoids.", "Some recipes of these services need each other; others bring them back.")
	run.Results = []sarifResult{}
	for i := range c.Cycles {
		run.Results = append(run.Results, c.Cycles[i].sarif())
	}
	return WriteJSON(out, sarifLog{Schema: "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run}})
}

func (c *Cycle) sarif() sarifResult {
	r := sarifResult{RuleID: "bj-cycle-avoidable", RuleIndex: 1, Level: "note"}
	w := &writer{}
	at := c.Path
	if c.Blocking {
		r.RuleID, r.RuleIndex, r.Level = "bj-cycle-blocking", 0, "error"
		if len(c.Break) > 0 {
			at = c.Break
		}
	}
	needs := "need each other to come back"
	if len(c.Services) == 1 {
		needs = "needs itself to come back"
	}
	fmt.Fprintf(w, "%s %s", andList(c.Services), needs)
	switch {
	case !c.Blocking:
		fmt.Fprintf(w, ", unless by %s.", andList(c.WayOut))
	case len(c.Break) > 0:
		fmt.Fprintf(w, "; it would break if %s came back without %s. Breaking it frees %s.", c.Break[0].From, c.Break[0].To, number(c.Frees, "service"))
	default:
		w.WriteString(".")
	}
	if len(c.Owners) > 0 {
		fmt.Fprintf(w, " Owned by %s.", andList(c.Owners))
	}
	r.Message.Text = w.String()
	r.Locations = []sarifLocation{}
	if len(at) > 0 {
		r.Locations = append(r.Locations, at[0].sarif(nil))
	}
	for i := range c.Path {
		if len(r.Related)+len(r.Locations) == maxSARIFLocations {
			break
		}
		n := i + 1
		r.Related = append(r.Related, c.Path[i].sarif(&n))
	}
	sum := sha256.Sum256([]byte(joined(c.Services)))
	r.Fingerprints = map[string]string{"bjCycle/v1": hex.EncodeToString(sum[:])}
	if c.Waived {
		r.Suppressions = []sarifSuppression{{"external", c.Reason}}
	}
	return r
}

func (e *Edge) sarif(id *int) sarifLocation {
	l := sarifLocation{ID: id, Message: &sarifMessage{e.sentence()}}
	l.Physical.Artifact.URI = (&url.URL{Path: strings.TrimPrefix(e.File, "/")}).EscapedPath()
	l.Physical.Artifact.URIBase = "%SRCROOT%"
	if e.Line > 0 {
		l.Physical.Region = &sarifRegion{e.Line}
	}
	return l
}
