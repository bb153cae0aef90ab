// dgen.call from JDBC:  java -cp /usr/share/java/postgresql.jar CallJdbc.java
// Needs examples/bank; reads PGHOST, PGDATABASE and so on.  pgjdbc has no unix sockets.
import java.sql.*;
import java.util.*;

public class CallJdbc {
    public static void main(String[] args) throws SQLException {
        Map<String, String> env = System.getenv();
        String url = "jdbc:postgresql://" + env.getOrDefault("PGHOST", "localhost") + ":"
            + env.getOrDefault("PGPORT", "5432") + "/" + env.get("PGDATABASE")
            + "?prepareThreshold=0";        // for PgBouncer, which has no named statements before 1.21
        try (Connection conn = DriverManager.getConnection(url, env.get("PGUSER"), env.get("PGPASSWORD"));
             PreparedStatement call = conn.prepareStatement(
                 "SELECT dgen.call(?, ?::jsonb, timeout => '2 s', request_key => ?)")) {
            call.setString(1, "bank/alice");
            call.setString(2, "{\"deposit\": 10}");
            call.setString(3, UUID.randomUUID().toString());    // so that asking again does not pay in twice
            for (int attempt = 0; ; attempt++) {
                try (ResultSet rows = call.executeQuery()) {
                    rows.next();
                    System.out.println(Long.parseLong(rows.getString(1)));
                    return;
                } catch (SQLException e) {
                    if (!List.of("OT001", "OT002", "OT015", "OT020").contains(e.getSQLState()) || attempt == 2)
                        throw e;
                }
            }
        }
    }
}
