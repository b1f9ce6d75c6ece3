package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protodelim"
)

// The file begins with a line that says what it is, and in which form:
//
//	heddle-xds-cache 1 <hex sha256 of the rest>
//
// then the id of the node, and one answer of the protocol for each type, all with
// their length in front. An unknown form, a wrong sum or another node's file is
// as good as none.
const fileHeader = "heddle-xds-cache 1 "

// settle is how long the file is left alone after a change, so that a burst of
// changes is written once.
const settle = time.Second

// keepSaved writes the file after changes, and at the end of ctx.
func (c *Client) keepSaved(ctx context.Context) {
	for {
		select {
		case <-c.changed:
		case <-ctx.Done():
			select {
			case <-c.changed:
				c.save()
			default:
			}
			return
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
		}
		c.save()
	}
}

// save writes the file. That it cannot be written is told, and then of no
// consequence: the next change tries again.
func (c *Client) save() {
	var body bytes.Buffer
	body.WriteString(c.cfg.Node.GetId() + "\n")
	for _, k := range kinds {
		c.mu.Lock()
		_, heard := c.accepted[k.url]
		c.mu.Unlock()
		if !heard || k.url == secretType {
			continue
		}
		m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: k.url}
		for _, r := range c.Resources(k.url) {
			m.Resources = append(m.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
		}
		if _, err := protodelim.MarshalTo(&body, m); err != nil {
			c.cfg.Log.Warn("last good configuration not saved", "file", c.cfg.CachePath, "err", err)
			return
		}
	}
	content := fmt.Appendf(nil, "%s%x\n", fileHeader, sha256.Sum256(body.Bytes()))
	if err := replaceFile(c.cfg.CachePath, append(content, body.Bytes()...)); err != nil {
		c.cfg.Log.Warn("last good configuration not saved", "file", c.cfg.CachePath, "err", err)
	}
}

// replaceFile puts a whole new file in the place of an old one, so that a reader
// sees one or the other. It does not wait for the disk: after a crash the sum
// tells whether the content arrived.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// load reads the file and hands its content to the handler.
func (c *Client) load() {
	if c.cfg.CachePath == "" {
		return
	}
	answers, written, err := c.readFile()
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		c.cfg.Log.Warn("last good configuration not usable", "file", c.cfg.CachePath, "err", err)
		return
	}
	for _, m := range answers {
		var all []Resource
		for _, r := range m.GetResources() {
			all = append(all, Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
		}
		if err := c.cfg.Handler.Apply(m.GetTypeUrl(), all, nil); err != nil {
			// What follows refers to this, so it is left for the server to send.
			c.cfg.Log.Warn("last good configuration not usable", "file", c.cfg.CachePath, "type", m.GetTypeUrl(), "err", err)
			return
		}
		c.accept(m.GetTypeUrl(), all, nil, written)
	}
	c.cfg.Log.Info("last good configuration loaded", "file", c.cfg.CachePath, "written", written)
}

// readFile returns the answers in the file, and when it was written.
func (c *Client) readFile() ([]*discoveryv3.DeltaDiscoveryResponse, time.Time, error) {
	content, err := os.ReadFile(c.cfg.CachePath)
	if err != nil {
		return nil, time.Time{}, err
	}
	info, err := os.Stat(c.cfg.CachePath)
	if err != nil {
		return nil, time.Time{}, err
	}
	answers, err := parseFile(content, c.cfg.Node.GetId())
	return answers, info.ModTime(), err
}

// parseFile reads the content of a file that must be node's.
func parseFile(content []byte, node string) ([]*discoveryv3.DeltaDiscoveryResponse, error) {
	header, body, _ := bytes.Cut(content, []byte("\n"))
	if want := fmt.Sprintf("%s%x", fileHeader, sha256.Sum256(body)); string(header) != want {
		return nil, errors.New("it is of another version, or damaged")
	}
	in := bufio.NewReader(bytes.NewReader(body))
	id, err := in.ReadString('\n')
	if err != nil || id != node+"\n" {
		return nil, fmt.Errorf("it belongs to node %q, not %q", id, node)
	}
	var out []*discoveryv3.DeltaDiscoveryResponse
	for {
		m := &discoveryv3.DeltaDiscoveryResponse{}
		err := protodelim.UnmarshalOptions{MaxSize: maxMessage}.UnmarshalFrom(in, m)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
}
