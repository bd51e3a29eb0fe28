// Hello answers over HTTP, and traces each answer with the SDK of OpenTelemetry.
// A span that no collector takes is dropped, and nobody waits for it. With -blocks
// each answer waits until its span was taken, as it is done "so that no span is
// lost"; then the host of the telemetry is as dark as its collector.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to answer")
	collector := flag.String("collector", "10.20.0.95:4318", "where spans go, by OTLP over HTTP")
	blocks := flag.Bool("blocks", false, "wait for the collector")
	flag.Parse()
	if err := run(*listen, *collector, *blocks); err != nil {
		log.Fatal(err)
	}
}

func run(listen, collector string, blocks bool) error {
	// New does not dial: a collector that is dark is noticed by the first export.
	exporter, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpoint(collector), otlptracehttp.WithInsecure(), otlptracehttp.WithTimeout(10*time.Second))
	if err != nil {
		return err
	}
	export := trace.WithBatcher(exporter)
	if blocks {
		export = trace.WithSyncer(exporter)
	}
	tracer := trace.NewTracerProvider(export).Tracer("hello")
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, span := tracer.Start(r.Context(), "hello")
		span.End() // a syncer exports here, before there is an answer
		fmt.Fprintln(w, "hello from bell")
	})
	log.Printf("answering on %s", listen)
	return http.ListenAndServe(listen, nil)
}
