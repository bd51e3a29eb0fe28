package graph

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// ErrUnknownFormat says that a file is neither a saved graph nor traces.
var ErrUnknownFormat = errors.New("it is neither a graph saved by bj graph --format json, nor traces as OTLP JSON or Jaeger JSON")

// ReadForDiff reads what a graph can be compared with: a saved graph, or the
// calls of runtime traces as OTLP JSON (also one request a line, as the
// collector's file exporter writes) or Jaeger JSON. One of the two is nil.
func ReadForDiff(data []byte) (*Saved, []Call, error) {
	var head struct {
		Schema        *string           `json:"schema"`
		ResourceSpans []json.RawMessage `json:"resourceSpans"`
		Data          []json.RawMessage `json:"data"`
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&head); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnknownFormat, err)
	}
	switch {
	case head.Schema != nil:
		s, err := ReadSaved(data)
		return s, nil, err
	case head.ResourceSpans != nil:
		calls, err := ReadOTLP(data)
		return nil, calls, err
	case head.Data != nil:
		calls, err := ReadJaeger(data)
		return nil, calls, err
	}
	return nil, nil, ErrUnknownFormat
}

// traceSpan is a span of either format.
type traceSpan struct {
	service string
	parents [][2]string // trace and span
	// peer is the service that the span itself says it calls, if it does.
	peer string
}

// spans are those of a file, by trace and span.
type spans map[[2]string]*traceSpan

// calls sums up which service calls which: a span whose parent is another
// service's, or that names its peer and has no child there. Calls within a
// service are left out.
func (s spans) calls() []Call {
	m := map[[2]string]int{}
	answered := map[[2]string]bool{} // spans with a child in another service
	for _, x := range s {
		for _, k := range x.parents {
			if p := s[k]; p != nil && p.service != x.service && p.service != "" && x.service != "" {
				m[[2]string{p.service, x.service}]++
				answered[k] = true
			}
		}
	}
	for k, x := range s {
		if x.peer != "" && x.service != "" && x.peer != x.service && !answered[k] {
			m[[2]string{x.service, x.peer}]++
		}
	}
	return sortCalls(m)
}

// ReadOTLP reads the calls of traces in OTLP's JSON, one request or one a line.
func ReadOTLP(data []byte) ([]Call, error) {
	all := spans{}
	d := json.NewDecoder(bytes.NewReader(data))
	for n := 1; ; n++ {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			if n > 1 && len(bytes.TrimSpace(data[d.InputOffset():])) == 0 {
				break
			}
			return nil, fmt.Errorf("reading OTLP traces: request %d: %w", n, err)
		}
		if err := all.addOTLP(raw); err != nil {
			return nil, fmt.Errorf("reading OTLP traces: request %d: %w", n, err)
		}
	}
	return all.calls(), nil
}

func (s spans) addOTLP(data []byte) (err error) {
	defer func() { // the decoder is not ours, and what it reads is anybody's
		if v := recover(); v != nil {
			err = fmt.Errorf("malformed: %v", v)
		}
	}()
	traces, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces(data)
	if err != nil {
		return err
	}
	for _, rs := range traces.ResourceSpans().All() {
		service := attribute(rs.Resource().Attributes(), "service.name")
		for _, ss := range rs.ScopeSpans().All() {
			for _, x := range ss.Spans().All() {
				id := x.TraceID().String()
				y := &traceSpan{service: service}
				if x.Kind() == ptrace.SpanKindClient || x.Kind() == ptrace.SpanKindProducer {
					y.peer = attribute(x.Attributes(), "peer.service", "service.peer.name")
				}
				if !x.ParentSpanID().IsEmpty() {
					y.parents = append(y.parents, [2]string{id, x.ParentSpanID().String()})
				}
				for _, l := range x.Links().All() { // the producer of a message
					if x.Kind() == ptrace.SpanKindConsumer {
						y.parents = append(y.parents, [2]string{l.TraceID().String(), l.SpanID().String()})
					}
				}
				s[[2]string{id, x.SpanID().String()}] = y
			}
		}
	}
	return nil
}

// attribute returns the first of some attributes that is there.
func attribute(m pcommon.Map, keys ...string) string {
	for _, k := range keys {
		if v, ok := m.Get(k); ok && v.AsString() != "" {
			return v.AsString()
		}
	}
	return ""
}

// ReadJaeger reads the calls of traces as Jaeger's query service and user
// interface write them.
func ReadJaeger(data []byte) ([]Call, error) {
	var file struct {
		Data []struct {
			TraceID string `json:"traceID"`
			Spans   []struct {
				TraceID      string `json:"traceID"`
				SpanID       string `json:"spanID"`
				ParentSpanID string `json:"parentSpanID"`
				ProcessID    string `json:"processID"`
				References   []struct {
					RefType string `json:"refType"`
					TraceID string `json:"traceID"`
					SpanID  string `json:"spanID"`
				} `json:"references"`
				Tags []struct {
					Key   string `json:"key"`
					Value any    `json:"value"`
				} `json:"tags"`
				Process *struct {
					ServiceName string `json:"serviceName"`
				} `json:"process"`
			} `json:"spans"`
			Processes map[string]struct {
				ServiceName string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("reading Jaeger traces: %w", err)
	}
	all := spans{}
	for _, t := range file.Data {
		for i, x := range t.Spans {
			y := &traceSpan{service: t.Processes[x.ProcessID].ServiceName}
			if x.Process != nil {
				y.service = x.Process.ServiceName
			}
			if x.SpanID == "" || y.service == "" {
				return nil, fmt.Errorf("reading Jaeger traces: span %d of trace %q has no id or no process", i+1, t.TraceID)
			}
			trace := x.TraceID
			if trace == "" {
				trace = t.TraceID
			}
			if x.ParentSpanID != "" {
				y.parents = append(y.parents, [2]string{trace, x.ParentSpanID})
			}
			for _, r := range x.References {
				if r.TraceID == "" {
					r.TraceID = trace
				}
				y.parents = append(y.parents, [2]string{r.TraceID, r.SpanID})
			}
			client := false
			for _, tag := range x.Tags {
				if tag.Key == "span.kind" && (tag.Value == "client" || tag.Value == "producer") {
					client = true
				}
				if v, ok := tag.Value.(string); ok && tag.Key == "peer.service" {
					y.peer = v
				}
			}
			if !client {
				y.peer = ""
			}
			all[[2]string{trace, x.SpanID}] = y
		}
	}
	return all.calls(), nil
}
