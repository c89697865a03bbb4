// Command app is the app of the tests: a server that takes its time, and a
// client that opens a connection for each request.
//
//	app serve ADDRESS
//	app load WORKERS URL
//
// The server answers /work?id=ID&for=DURATION after that time, and on TERM
// finishes what it began. The client asks until TERM. Both print a line for
// each request, which is what the tests read.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(ctx, os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "load":
		err = load(ctx, os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: app serve ADDRESS | app load WORKERS URL")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, address string) error {
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(work)}
	server.SetKeepAlivesEnabled(false)
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		fmt.Println("ending")
		server.Shutdown(context.Background())
		// A connection that was accepted in the moment of the first one may not
		// have been counted by it.
		time.Sleep(time.Second)
		ended <- server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

func work(w http.ResponseWriter, r *http.Request) {
	id := r.FormValue("id")
	wait, err := time.ParseDuration(r.FormValue("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Println("begin", id)
	time.Sleep(wait)
	fmt.Fprintln(w, "done", id)
	fmt.Println("end", id)
}

// load prints "ok ID" or "failed ID: why" for each request.
func load(ctx context.Context, workers, url string) error {
	n, err := strconv.Atoi(workers)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("%d-%d", w, i)
				if err := ask(client, url+"&id="+id, id); err != nil {
					fmt.Printf("failed %s: %v\n", id, err)
					time.Sleep(50 * time.Millisecond)
					continue
				}
				fmt.Println("ok", id)
			}
		})
	}
	wg.Wait()
	return nil
}

func ask(client *http.Client, url, id string) error {
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK || string(body) != "done "+id+"\n" {
		return fmt.Errorf("%s: %q", res.Status, body)
	}
	return nil
}
