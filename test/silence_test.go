package test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A client of an undeclared port may begin to speak at any moment, also just when
// the sidecar has lost patience and asks the server.
func TestClientThatHesitatesIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSimStage(t)
		defer s.close()
		files := map[string][]byte{}
		for _, name := range []string{"client.yaml", "db.yaml"} {
			b, err := os.ReadFile("scripts/common/" + name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = b
		}
		if faults, err := s.Apply(t.Context(), files); err != nil || len(faults) > 0 {
			t.Fatal(faults, err)
		}
		c, err := s.client("client")
		if err != nil {
			t.Fatal(err)
		}
		ask := func(pause time.Duration) (string, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			conn, err := c.Dial(ctx, "tcp", "db:7001")
			if err != nil {
				return "", err
			}
			defer conn.Close()
			time.Sleep(pause)
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprintln(conn, "hi")
			conn.(interface{ CloseWrite() error }).CloseWrite()
			b, err := io.ReadAll(conn)
			return string(b), err
		}
		for pause := 99 * time.Millisecond; pause < 102*time.Millisecond; pause += 25 * time.Microsecond {
			if got, err := ask(pause); err != nil || got != "db-0: hi\ndb-0: 3 bytes\n" {
				t.Errorf("after %v: %q, %v", pause, got, err)
			}
		}
	})
}
