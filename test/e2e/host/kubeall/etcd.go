package main

import (
	"errors"
	"flag"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcd serves until it is told to end. What it holds is not worth an fsync.
func etcd(args []string) error {
	fs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	dir := fs.String("data-dir", "", "data directory")
	listen := fs.String("listen", "http://127.0.0.1:2379", "client URL")
	peer := fs.String("peer", "http://127.0.0.1:2380", "peer URL")
	if err := fs.Parse(args); err != nil {
		return err
	}
	client, err := url.Parse(*listen)
	if err != nil {
		return err
	}
	peers, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Dir = *dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.UnsafeNoFsync = true
	c.LogLevel = "warn"
	c.WarningUnaryRequestDuration = 300 * time.Millisecond // 0, as embedded, logs every request
	c.QuotaBackendBytes = 8 << 30
	c.AutoCompactionMode, c.AutoCompactionRetention = "periodic", "5m"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-signals:
		return nil
	case err := <-e.Err():
		return errors.Join(errors.New("the server ended"), err)
	}
}
