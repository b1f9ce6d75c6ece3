// Command bookstore is the demo's services in one program: a page that asks for
// details, reviews and ratings over HTTP, and a stock server that speaks a line
// protocol over raw TCP. None of them knows that there is a mesh.
//
//	bookstore productpage | details | reviews | ratings | stock
//
// Settings come from the environment: PORT (9080), VERSION (v1), and for reviews
// STARS (a colour, or nothing for no stars).
package main

import (
	"bufio"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed page.html
var files embed.FS

var page = template.Must(template.ParseFS(files, "page.html"))

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	role := "productpage"
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	if err := run(ctx, role); err != nil {
		log.Fatalf("bookstore %s: %v", role, err)
	}
}

func run(ctx context.Context, role string) error {
	s := service{
		version: cmp.Or(os.Getenv("VERSION"), "v1"),
		pod:     cmp.Or(os.Getenv("POD_NAME"), os.Getenv("HOSTNAME")),
		stars:   os.Getenv("STARS"),
		client:  &http.Client{Timeout: 3 * time.Second},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	switch role {
	case "productpage":
		mux.HandleFunc("GET /{$}", s.page)
		mux.HandleFunc("GET /productpage", s.page)
	case "details":
		mux.HandleFunc("GET /details/{id}", s.details)
	case "reviews":
		mux.HandleFunc("GET /reviews/{id}", s.reviews)
	case "ratings":
		mux.HandleFunc("GET /ratings/{id}", s.ratings)
	case "stock":
		return s.stock(ctx, ":"+cmp.Or(os.Getenv("PORT"), "7070"))
	default:
		return errors.New("no such service; one of productpage, details, reviews, ratings, stock")
	}
	srv := &http.Server{Addr: ":" + cmp.Or(os.Getenv("PORT"), "9080"), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return srv.Shutdown(last)
	}
}

type service struct {
	version, pod, stars string
	client              *http.Client
}

// The answers that services give each other.
type (
	details struct {
		Title, Author, Year, Pages, Publisher, ISBN string
		Stock                                       string
		Pod                                         string
	}
	review struct {
		Reviewer, Text string
		Stars          int // 0: this version shows none
	}
	reviews struct {
		Version, Pod, Colour string
		Reviews              []review
	}
	ratings struct {
		Pod     string
		Ratings map[string]int
	}
)

// passed are the headers that tie the calls of one page together.
var passed = []string{"x-request-id", "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "end-user"}

// get asks another service for JSON.
func (s service) get(r *http.Request, url string, into any) error {
	req, err := http.NewRequestWithContext(r.Context(), "GET", url, nil)
	if err != nil {
		return err
	}
	for _, h := range passed {
		if v := r.Header.Get(h); v != "" {
			req.Header.Set(h, v)
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("content-type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		log.Print(err)
	}
}

// page gathers details and reviews at the same time and shows what came, and
// what did not.
func (s service) page(w http.ResponseWriter, r *http.Request) {
	if user := r.URL.Query().Get("user"); user != "" {
		r.Header.Set("end-user", user)
	}
	var v struct {
		Pod, Version, User       string
		Details                  details
		Reviews                  reviews
		DetailsError, ReviewsErr error
	}
	v.Pod, v.Version, v.User = s.pod, s.version, r.Header.Get("end-user")
	var wg sync.WaitGroup
	wg.Go(func() { v.DetailsError = s.get(r, "http://details:9080/details/0", &v.Details) })
	wg.Go(func() { v.ReviewsErr = s.get(r, "http://reviews:9080/reviews/0", &v.Reviews) })
	wg.Wait()
	w.Header().Set("content-type", "text/html; charset=utf-8")
	w.Header().Set("cache-control", "no-store")
	if err := page.Execute(w, v); err != nil {
		log.Print(err)
	}
}

func (s service) details(w http.ResponseWriter, r *http.Request) {
	answer(w, details{
		Title: "The Time Machine", Author: "H. G. Wells", Year: "1895", Pages: "118",
		Publisher: "William Heinemann", ISBN: r.PathValue("id"), Stock: copies(r.Context()), Pod: s.pod,
	})
}

// copies asks the stock server, which greets before it is asked.
func copies(ctx context.Context) string {
	c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", "stock:7070")
	if err != nil {
		return "unknown: " + err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	in := bufio.NewScanner(c)
	if !in.Scan() { // the greeting
		return "unknown: no greeting"
	}
	fmt.Fprintln(c, "COUNT 0")
	if !in.Scan() {
		return "unknown: no answer"
	}
	return in.Text()
}

func (s service) reviews(w http.ResponseWriter, r *http.Request) {
	out := reviews{Version: s.version, Pod: s.pod, Colour: s.stars, Reviews: []review{
		{Reviewer: "Ada", Text: "A machine, a dinner party, and eight hundred thousand years before dessert."},
		{Reviewer: "Basil", Text: "Short, odd, and still ahead of its time, which is rather the point."},
	}}
	if s.stars != "" {
		var got ratings
		if err := s.get(r, "http://ratings:9080/ratings/"+r.PathValue("id"), &got); err != nil {
			log.Print(err)
		}
		for i := range out.Reviews {
			out.Reviews[i].Stars = got.Ratings[out.Reviews[i].Reviewer]
		}
	}
	answer(w, out)
}

func (s service) ratings(w http.ResponseWriter, _ *http.Request) {
	answer(w, ratings{Pod: s.pod, Ratings: map[string]int{"Ada": 5, "Basil": 4}})
}

// stock speaks first: a greeting, then an answer for each line.
func (s service) stock(ctx context.Context, addr string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "STOCK %s ready\n", s.version)
			for in := bufio.NewScanner(c); in.Scan(); {
				switch word, _, _ := strings.Cut(in.Text(), " "); word {
				case "COUNT":
					fmt.Fprintln(c, "17 copies")
				case "QUIT":
					return
				default:
					fmt.Fprintln(c, "ERR unknown command")
				}
			}
		}()
	}
}

// Filled lets the page draw a row of five stars.
func (r review) Filled() []bool {
	out := make([]bool, 5)
	for i := range out {
		out[i] = i < r.Stars
	}
	return out
}
