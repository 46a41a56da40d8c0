// Browsers start no workers for pages that are read from a folder (file:). The search of the site is a worker: there
// it runs in a hidden frame, and this class stands in for the browser's.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = []; // what is sent before the script is there
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      frame.contentDocument.open();
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      script.src = url;
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        for (const data of waiting) this.send(inside, data);
      };
      this.inside = inside;
      frame.contentDocument.write("<html><body></body></html>");
      frame.contentDocument.close();
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.send(this.inside, data);
    }

    send(inside, data) {
      inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
