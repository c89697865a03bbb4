// Sealane-injector is the admission webhook that adds sealane sidecars to the
// pods of namespaces with the label sealane.dev/inject=enabled. What it adds
// is package inject's; this program answers the API server and keeps its own
// certificate.
//
// Several replicas may run. They share certificate authorities in a Secret;
// each makes its serving certificate from them in memory, and each keeps the
// webhook configuration's caBundle equal to them.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/sealane/sealane/k8s/inject"
)

// version is set by -ldflags "-X main.version=...".
var version = "devel"

// Exit codes, as those of sealane.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 64
)

// drain is how long requests are still answered after TERM, while the API
// server learns that this replica is no endpoint of the Service any more.
const drain = 5 * time.Second

type options struct {
	listen, namespace, service, secret, webhook, image string

	rotate time.Duration
}

func main() {
	o, code := parse(os.Args[1:], os.Getenv, os.Stderr)
	if code >= 0 {
		os.Exit(code)
	}
	log := zerolog.New(os.Stderr).With().Timestamp().Logger()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, log); err != nil {
		log.Error().Err(err).Msg("the injector ends")
		os.Exit(exitError)
	}
}

// parse gives the exit code, or -1 to go on.
func parse(args []string, getenv func(string) string, stderr io.Writer) (options, int) {
	var o options
	flags := flag.NewFlagSet("sealane-injector", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.listen, "listen", ":8443", "address to answer the API server on")
	flags.StringVar(&o.namespace, "namespace", getenv("POD_NAMESPACE"), "namespace of the injector")
	flags.StringVar(&o.service, "service", "sealane-injector", "Service of the injector")
	flags.StringVar(&o.secret, "secret", "sealane-injector", "Secret that the replicas share, which must exist")
	flags.StringVar(&o.webhook, "webhook", "sealane-injector", "MutatingWebhookConfiguration to keep the caBundle of")
	flags.StringVar(&o.image, "image", inject.DefaultImage(version), "sidecar image of pods that name none")
	flags.DurationVar(&o.rotate, "rotate-every", 30*24*time.Hour, "age at which a certificate authority is replaced")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return o, exitOK
	case err != nil:
		return o, exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "sealane-injector: unexpected argument %q\n", flags.Arg(0))
		return o, exitUsage
	case o.namespace == "":
		fmt.Fprintln(stderr, "sealane-injector: name the namespace with --namespace or POD_NAMESPACE")
		return o, exitUsage
	case o.rotate < minRotate:
		fmt.Fprintf(stderr, "sealane-injector: --rotate-every is less than %v\n", minRotate)
		return o, exitUsage
	}
	return o, -1
}

// run serves until ctx ends, and then as long as the drain takes.
func run(ctx context.Context, o options, log zerolog.Logger) error {
	api, err := inCluster()
	if err != nil {
		return err
	}
	network := "tcp"
	if host, _, err := net.SplitHostPort(o.listen); err == nil && host == "0.0.0.0" {
		network = "tcp4" // or it would be every IPv6 address, too
	}
	listener, err := net.Listen(network, o.listen)
	if err != nil {
		return err
	}
	k := &keeper{options: o, api: api, log: log, now: time.Now}
	server := &http.Server{
		Handler:           handler(o, log),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: k.certificate},
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	keep, stop := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		k.run(keep)
	}()
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	log.Info().Str("listen", listener.Addr().String()).Str("image", o.image).Str("version", version).Msg("the injector runs")
	select {
	case err = <-served:
	case <-ctx.Done():
		err = finish(server)
	}
	stop()
	<-kept
	return err
}

// finish goes on serving for a while and ends.
func finish(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	<-ctx.Done()
	ctx, cancel = context.WithTimeout(context.Background(), drain)
	defer cancel()
	return server.Shutdown(ctx)
}
