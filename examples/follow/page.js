// What comes from the database is set as textContent only: it is never taken for HTML.
const place = id => document.getElementById(id);
let events = null;

function follow(server) {
  if (events) events.close();
  place("server").textContent = server;
  place("version").textContent = "";
  place("state").textContent = "";
  events = new EventSource("/events?server=" + encodeURIComponent(server));
  events.onopen = () => place("trouble").textContent = "";
  events.onerror = () => place("trouble").textContent = "The connection is lost, and tried again.";
  events.onmessage = event => {
    const {version, state} = JSON.parse(event.data);
    place("version").textContent = version === null ? "There is no such server." : "version " + version;
    place("state").textContent = version === null ? "" : JSON.stringify(state, null, 2);
  };
}

async function list() {
  const servers = await (await fetch("/servers")).json();
  place("servers").replaceChildren(...servers.map(server => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.textContent = server;
    button.onclick = () => follow(server);
    item.append(button);
    return item;
  }));
}

list();
setInterval(list, 5000);
