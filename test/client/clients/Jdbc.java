// What JDBC makes of dgen.call, as a line of JSON for test_clients.py
import java.sql.*;
import java.util.*;

public class Jdbc {
    static final Map<String, String> told = new LinkedHashMap<>();

    interface Work { void run() throws SQLException; }

    static void tell(String name, Object value) {
        told.put(name, value instanceof Number || value instanceof Boolean ? value.toString()
                 : "\"" + value.toString().replace("\\", "\\\\").replace("\"", "\\\"") + "\"");
    }

    static String failure(Work work) {
        try {
            work.run();
            return "none";
        } catch (SQLException e) {
            return e.getClass().getSimpleName() + " " + e.getSQLState();
        }
    }

    static Connection connect(String options) throws SQLException {
        Map<String, String> env = System.getenv();
        return DriverManager.getConnection("jdbc:postgresql://" + env.get("PGHOST") + ":" + env.get("PGPORT") + "/"
                                           + env.get("PGDATABASE") + options, env.get("PGUSER"), "");
    }

    static ResultSet call(PreparedStatement query, String key, String request) throws SQLException {
        query.setString(1, "lab/" + key);
        query.setString(2, request);
        ResultSet rows = query.executeQuery();
        rows.next();
        return rows;
    }

    static int pid(Connection conn) throws SQLException {
        try (Statement s = conn.createStatement(); ResultSet rows = s.executeQuery("SELECT pg_backend_pid()")) {
            rows.next();
            return rows.getInt(1);
        }
    }

    static final String CALL = "SELECT dgen.call(?, ?::jsonb)";

    public static void main(String[] args) throws SQLException {
        try (Connection conn = connect("?prepareThreshold=0"); PreparedStatement query = conn.prepareStatement(CALL);
             Statement plain = conn.createStatement()) {
            tell("reply", call(query, "jdbc", "{\"echo\": {\"a\": [1, \"x\", null]}}").getString(1));
            tell("object", call(query, "jdbc", "{\"echo\": 1}").getObject(1).getClass().getSimpleName());
            tell("no_cast", failure(() -> call(conn.prepareStatement("SELECT dgen.call(?, ?)"), "jdbc", "{}")));
            tell("unique", failure(() -> call(query, "jdbc", "{\"raise\": \"23505\"}")));
            tell("pid", pid(conn));
            tell("interrupted", failure(() -> call(query, "jdbc", "{\"raise\": \"57P01\"}")));
            tell("lost", failure(() -> call(query, "jdbc", "{\"die\": true}")));
            tell("valid", conn.isValid(5));
            tell("pid_after", pid(conn));
            for (int i = 0; i < 12; i++)
                tell("count", call(query, "jdbc", "{\"count\": 1}").getInt(1));

            conn.setAutoCommit(false);
            plain.execute("INSERT INTO lab.row VALUES (1)");
            try (PreparedStatement other = conn.prepareStatement(CALL)) {
                tell("in_transaction", call(other, "jdbc", "{\"count\": 1}").getInt(1));
                tell("notices", other.getWarnings() == null ? "none" : other.getWarnings().getSQLState());
            }
            conn.rollback();
            plain.execute("SET LOCAL statement_timeout = '300 ms'");
            tell("timeout", failure(() -> call(query, "held", "{}")));
            conn.rollback();
            conn.setReadOnly(true);
            tell("read_only", failure(() -> call(query, "jdbc", "{\"count\": 1}")));
            conn.rollback();
            conn.setReadOnly(false);
            conn.setAutoCommit(true);
            query.setQueryTimeout(1);
            tell("query_timeout", failure(() -> call(query, "held", "{}")));
        }
        try (Connection conn = connect(""); PreparedStatement query = conn.prepareStatement(CALL)) {
            conn.setAutoCommit(false);      // else it tries again by itself
            String named = "none";
            for (int i = 0; i < 16 && named.equals("none"); i++)
                named = failure(() -> {
                    call(query, "named", "{\"count\": 1}");
                    conn.commit();
                });
            tell("named", named);
        }
        StringJoiner json = new StringJoiner(", ", "{", "}");
        told.forEach((name, value) -> json.add("\"" + name + "\": " + value));
        System.out.println(json);
    }
}
